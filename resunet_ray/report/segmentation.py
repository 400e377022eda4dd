"""The report of a segmentation run: what became of the images, how fast, and which of them somebody should look at."""

import base64
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import UInt8
from matplotlib.figure import Figure

from resunet_ray import storage
from resunet_ray.config import SegmentConfig, load_config
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_image, decode_stored, encode_png
from resunet_ray.data.slides import Slide
from resunet_ray.data.tissue import read_view
from resunet_ray.errors import InputError
from resunet_ray.report.page import COLOURS, REPORT_FILE, to_svg, write_page
from resunet_ray.segment import layout
from resunet_ray.segment.planning.survey import stage_slide
from resunet_ray.segment.rows import ImageRef

_SHOWN = 12  # images
_SLIDES = 50
_SLIDE_SIDE = 900  # pixels of a slide's longer side
_MASK_COLOUR, _READ_COLOUR = (225, 20, 60), (90, 140, 220)
_FAILURES = 200  # rows of the table of failures
_SIDE = 360  # pixels of a picture's longer side
_MEASURES = {
    "num_nuclei": "nuclei",
    "foreground_fraction": "foreground",
    "mean_confidence": "mean confidence",
    "uncertain_fraction": "uncertain pixels",
    "focus_score": "focus",
}
_COLUMNS = [
    *(
        "image_id",
        "image_uri",
        "member",
        "member_offset",
        "source_bytes",
        "source_etag",
        "source_mtime",
        "is_slide",
    ),
    *(
        "height",
        "width",
        "status",
        "qc_reasons",
        "tissue_fraction",
        "seam_disagreement",
        "mpp",
        "mpp_source",
    ),
    *("error_stage", "error_type", "error_message", *_MEASURES),
]


@dataclass
class _Summary:
    """What a report says of a run's images, gathered file by file, so that a run of millions fits into memory."""

    measures: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {name: [] for name in _MEASURES}
    )
    reasons: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: list[dict[str, Any]] = field(default_factory=list)
    suspects: pd.DataFrame = field(default_factory=pd.DataFrame)
    slides: list[dict[str, Any]] = field(default_factory=list)

    def add(self, images: pd.DataFrame) -> None:
        """Takes in the images of one file."""
        bad = images["status"] == "failed"
        done, failed = images[~bad], images[bad]
        for name, values in self.measures.items():
            values.append(done[name].dropna().to_numpy(np.float32))
        self.reasons.update(done["qc_reasons"].explode().dropna())
        self.failures.update(zip(failed["error_stage"], failed["error_type"], strict=True))
        self.failed += failed.head(_FAILURES - len(self.failed)).to_dict("records")
        self.slides += (
            images[images["is_slide"]].head(_SLIDES - len(self.slides)).to_dict("records")
        )
        done = done[~done["is_slide"]]
        both = pd.concat(
            [self.suspects, done.assign(reasons=done["qc_reasons"].map(len))], ignore_index=True
        )
        self.suspects = both.sort_values(
            ["reasons", "uncertain_fraction"], ascending=False, kind="stable"
        ).head(_SHOWN)


def find_unreported(output: str) -> list[str]:
    """The newest run, if it is done and was interrupted before its report was written."""
    runs = storage.join(output, layout.RUNS)
    for run_id in storage.list_folders(runs)[-1:]:
        record = layout.record_uri(output, run_id)
        done = storage.exists(record) and json.loads(storage.read_bytes(record))["status"] == "done"
        if done and not storage.exists(storage.join(runs, run_id, REPORT_FILE)):
            return [run_id]
    return []


def write_segmentation_report(output: str, *, run_id: str) -> str:
    """Writes runs/RUN/report.html, and returns where.

    Args:
        output: of the runs.
        run_id: which of them.
    """
    folder = layout.run_folder(output, run_id)
    record = json.loads(storage.read_bytes(layout.record_uri(output, run_id)))
    summary = _Summary()
    for uri in _tables(storage.join(output, layout.IMAGES, run_id)):
        summary.add(storage.read_table(uri, columns=_COLUMNS).to_pandas())
    measures = {name: np.concatenate(values) for name, values in summary.measures.items()}
    config = load_config(json.dumps(record["config"]), kind=SegmentConfig, source=layout.RUN_FILE)
    return write_page(
        storage.join(folder, REPORT_FILE),
        template="segmentation.html",
        run_id=run_id,
        record=record,
        result=record["result"],
        distributions=_draw_distributions(measures) if len(summary.suspects) else None,
        reasons=dict(summary.reasons.most_common()),
        suspects=_shown_images(summary.suspects, config, output, run_id),
        failures=[
            {"stage": stage, "type": kind, "count": count}
            for (stage, kind), count in summary.failures.most_common()
        ],
        failed=summary.failed,
        slides=_shown_slides(summary.slides, config, output, run_id),
    )


def _draw_distributions(measures: dict[str, np.ndarray]) -> str:
    figure = Figure(figsize=(11, 2.4), layout="constrained")
    for axis, (name, title) in zip(
        figure.subplots(1, len(_MEASURES), sharey=True), _MEASURES.items(), strict=True
    ):
        axis.hist(measures[name], bins=30, color=COLOURS[0])
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("images", fontsize=8)
    return to_svg(figure)


def _shown_images(
    rows: pd.DataFrame, config: SegmentConfig, output: str, run_id: str
) -> list[dict[str, Any]]:
    if rows.empty:
        return []
    regions = itertools.islice(
        _read_regions(output, run_id, set(rows["image_id"])), len(rows)
    )  # each image is one
    masks = {region["image_id"]: region["mask"] for region in regions}
    shown = []
    for row in rows.to_dict("records"):
        try:
            picture = _overlay(
                _read_image(row, storage.Cache.of(config)), decode_stored(masks[row["image_id"]])
            )
        except InputError as error:  # gone since
            shown.append({**row, "picture": None, "message": str(error)})
            continue
        shown.append({**row, "picture": base64.b64encode(encode_png(picture)).decode()})
    return shown


@dataclass
class _SlidePicture:
    """A slide, small, on which its regions are drawn."""

    height: int
    """Of the slide, level-0 pixels."""
    view: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] = field(init=False)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Of the regions that were read: left, top, right, bottom."""

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.view.shape[:2], np.uint8)

    def add(self, region: dict[str, Any]) -> None:
        """Takes in the place of a region and its mask."""
        factor = self.view.shape[0] / self.height
        top, left = int(region["y"] * factor), int(region["x"] * factor)
        bottom, right = (
            int(np.ceil((region[a] + region[b]) * factor))
            for a, b in (("y", "height"), ("x", "width"))
        )
        self.boxes.append((left, top, right - 1, bottom - 1))
        window = self.mask[top:bottom, left:right]  # which ends with the view
        if window.size:
            small = cv2.resize(
                decode_stored(region["mask"]),
                (right - left, bottom - top),
                interpolation=cv2.INTER_AREA,
            )
            np.maximum(window, small[: window.shape[0], : window.shape[1]], out=window)

    def draw(self) -> str:
        """The regions and their masks laid over the view: PNG in base64."""
        laid, here = self.view.copy(), self.mask > 0
        for left, top, right, bottom in self.boxes:
            cv2.rectangle(laid, (left, top), (right, bottom), _READ_COLOUR, 1)
        laid[here] = (0.3 * self.view[here] + 0.7 * np.array(_MASK_COLOUR)).astype(np.uint8)
        return base64.b64encode(encode_png(laid)).decode()


def _shown_slides(
    rows: list[dict[str, Any]], config: SegmentConfig, output: str, run_id: str
) -> list[dict[str, Any]]:
    """Slides, small, with the regions that were read, and their masks laid over them."""
    pictures: dict[str, _SlidePicture] = {}
    messages: dict[str, str] = {}
    for row in rows:
        try:
            with (
                stage_slide(_image(row), config=config) as path,
                closing(Slide(path, name=row["image_uri"])) as slide,
            ):
                pictures[row["image_id"]] = _SlidePicture(
                    slide.info.height, read_view(slide, side=_SLIDE_SIDE)
                )
        except InputError as error:  # gone since, or it never opened
            messages[row["image_id"]] = row["error_message"] or str(error)
    if pictures:
        for region in _read_regions(output, run_id, set(pictures)):
            pictures[region["image_id"]].add(region)
    drawn = {image_id: picture.draw() for image_id, picture in pictures.items()}
    return [
        {**row, "picture": drawn.get(row["image_id"]), "message": messages.get(row["image_id"])}
        for row in rows
    ]


def _image(row: dict[str, Any]) -> ImageRef:
    names = ("image_id", "image_uri", "source_bytes", "source_etag", "source_mtime")
    return ImageRef(**{name: row[name] for name in names})


def _read_regions(output: str, run_id: str, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """The regions of some images that have a mask."""
    ids = pa.array(sorted(wanted))
    for uri in _tables(storage.join(output, layout.REGIONS, run_id)):
        here = pc.is_in(storage.read_table(uri, columns=["image_id"])["image_id"], value_set=ids)
        if pc.any(here).as_py():
            rows = (
                storage.read_table(uri, columns=["image_id", "y", "x", "height", "width", "mask"])
                .filter(here)
                .to_pylist()
            )
            yield from (row for row in rows if row["mask"] is not None)


def _tables(folder: str) -> list[str]:
    return [
        storage.join(folder, name)
        for name, _ in storage.list_files(folder)
        if name.endswith(".parquet")
    ]


def _read_image(row: dict[str, Any], cache: storage.Cache) -> UInt8[np.ndarray, "h w 3"]:
    member = row["member"] if isinstance(row["member"], str) else None
    offset = None if pd.isna(row["member_offset"]) else int(row["member_offset"])
    entry = Entry(row["image_uri"], member, offset, int(row["source_bytes"]))
    return decode_image(entry.read(cache), name=entry.name)


def _overlay(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "i j 3"]:
    """The image beside itself with the outlines of what was found."""
    factor = min(1.0, _SIDE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    outlines, _ = cv2.findContours(
        cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST),
        cv2.RETR_LIST,
        cv2.CHAIN_APPROX_NONE,
    )
    marked = cv2.drawContours(small.copy(), outlines, -1, (255, 210, 0), 1)
    return np.hstack([small, np.full((small.shape[0], 4, 3), 255, np.uint8), marked])
