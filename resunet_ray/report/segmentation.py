"""The report of a segmentation run: how its images ended, how fast, and which to look at first."""

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
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from resunet_ray import storage
from resunet_ray.config import SegmentConfig, load_config
from resunet_ray.data.archives import Entry
from resunet_ray.data.images import decode_image, decode_stored, encode_png
from resunet_ray.data.slides import Slide
from resunet_ray.data.tissue import read_view
from resunet_ray.errors import InputError
from resunet_ray.report.outlines import draw_beside
from resunet_ray.report.page import (
    COLOURS,
    FIGURE_WIDTH,
    REPORT_FILE,
    styled_figures,
    to_svg,
    write_page,
)
from resunet_ray.segment import layout
from resunet_ray.segment.planning.survey import stage_slide
from resunet_ray.segment.rows import ImageRef

_SHOWN = 12  # images to look at first
_SLIDES = 50
_SLIDE_SIDE = 900  # longer side of a slide's picture, pixels
_SIDE = 360  # longer side of an image's picture, pixels
_MASK_COLOUR, _READ_COLOUR = (225, 20, 60), (90, 140, 220)
_FAILURES = 200  # failed images listed with their message
_BINS = 30
_MEASURES = {
    "num_nuclei": "nuclei per image",
    "foreground_fraction": "foreground",
    "mean_confidence": "mean confidence",
    "uncertain_fraction": "uncertain",
    "focus_score": "focus score",
}
"""Columns of images/ whose distributions are drawn, and their labels."""

_COLUMNS = [
    *("image_id", "image_uri", "is_slide", "height", "width", "status", "mpp", "mpp_source"),
    *("member", "member_offset", "source_bytes", "source_etag", "source_mtime"),
    *("qc_reasons", "error_stage", "error_type", "error_message"),
    *_MEASURES,
]
"""Columns of images/ that the report reads."""


@dataclass
class _Summary:
    """What the report says about a run's images.

    It is gathered file by file, so that a run of millions fits into memory.
    """

    measures: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {name: [] for name in _MEASURES}
    )
    reasons: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)
    failed: list[dict[str, Any]] = field(default_factory=list)
    suspects: pd.DataFrame = field(default_factory=pd.DataFrame)
    slides: list[dict[str, Any]] = field(default_factory=list)

    def add(self, images: pd.DataFrame) -> None:
        """Add the images of one file."""
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
    """Return the newest run if it is done but was interrupted before its report was written."""
    runs = storage.join(output, layout.RUNS)
    for run_id in storage.list_folders(runs)[-1:]:
        record = layout.record_uri(output, run_id)
        done = storage.exists(record) and json.loads(storage.read_bytes(record))["status"] == "done"
        if done and not storage.exists(storage.join(runs, run_id, REPORT_FILE)):
            return [run_id]
    return []


@styled_figures
def write_segmentation_report(output: str, *, run_id: str) -> str:
    """Write runs/RUN/report.html; returns its location.

    Args:
        output: location that `segment` wrote to.
        run_id: run to report on.
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
    """One histogram of images for each measure."""
    figure = Figure(figsize=(FIGURE_WIDTH, 2.5), layout=ConstrainedLayoutEngine(wspace=0.06))
    axes = figure.subplots(1, len(_MEASURES), sharey=True)
    for axis, (name, title) in zip(axes, _MEASURES.items(), strict=True):
        values = measures[name]
        bins = _count_bins(values) if name == "num_nuclei" else _BINS
        axis.hist(values, bins=bins, color=COLOURS[0])
        axis.set_xlabel(title)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("images")
    return to_svg(figure)


def _count_bins(values: np.ndarray) -> list[float]:
    """Edges of bins that hold equally many whole numbers each; other bins would leave gaps."""
    most = int(values.max(initial=0))
    step = -(-(most + 1) // _BINS)
    return [edge - 0.5 for edge in range(0, most + 1 + step, step)]


def _shown_images(
    rows: pd.DataFrame, config: SegmentConfig, output: str, run_id: str
) -> list[dict[str, Any]]:
    """Images with their pictures, or a message where the source can no longer be read."""
    if rows.empty:
        return []
    # A plain image is one region.
    regions = itertools.islice(_read_regions(output, run_id, set(rows["image_id"])), len(rows))
    masks = {region["image_id"]: region["mask"] for region in regions}
    shown = []
    for row in rows.to_dict("records"):
        try:
            image = _read_image(row, storage.Cache.of(config))
            picture = draw_beside(image, decode_stored(masks[row["image_id"]]), side=_SIDE)
        except InputError as error:  # deleted or changed since the run
            shown.append({**row, "picture": None, "message": str(error)})
            continue
        shown.append({**row, "picture": base64.b64encode(encode_png(picture)).decode()})
    return shown


@dataclass
class _SlidePicture:
    """A low-resolution view of a slide on which its regions are drawn."""

    height: int
    """Height of the slide, level-0 pixels."""
    view: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"] = field(init=False)
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Regions that were read: left, top, right, bottom, in pixels of the view."""

    def __post_init__(self) -> None:
        self.mask = np.zeros(self.view.shape[:2], np.uint8)

    def add(self, region: dict[str, Any]) -> None:
        """Add a region: its box and its mask."""
        factor = self.view.shape[0] / self.height
        top, left = int(region["y"] * factor), int(region["x"] * factor)
        bottom, right = (
            int(np.ceil((region[a] + region[b]) * factor))
            for a, b in (("y", "height"), ("x", "width"))
        )
        self.boxes.append((left, top, right - 1, bottom - 1))
        window = self.mask[top:bottom, left:right]  # cut off at the edge of the view
        if window.size:
            small = cv2.resize(
                decode_stored(region["mask"]),
                (right - left, bottom - top),
                interpolation=cv2.INTER_AREA,
            )
            np.maximum(window, small[: window.shape[0], : window.shape[1]], out=window)

    def draw(self) -> str:
        """The regions and their masks over the view, as PNG in base64."""
        laid, here = self.view.copy(), self.mask > 0
        for left, top, right, bottom in self.boxes:
            cv2.rectangle(laid, (left, top), (right, bottom), _READ_COLOUR, 1)
        laid[here] = (0.3 * self.view[here] + 0.7 * np.array(_MASK_COLOUR)).astype(np.uint8)
        return base64.b64encode(encode_png(laid)).decode()


def _shown_slides(
    rows: list[dict[str, Any]], config: SegmentConfig, output: str, run_id: str
) -> list[dict[str, Any]]:
    """Slides with their pictures: the regions that were read, and their masks."""
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
        except InputError as error:  # deleted since the run, or it never opened
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
    """Yield the regions with a mask of the wanted images."""
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
