"""The report of a segmentation run: how its images ended, how fast, and which to look at first."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from resunet_ray import storage
from resunet_ray.config import SegmentConfig, load_config
from resunet_ray.report.page import (
    COLOURS,
    FIGURE_WIDTH,
    REPORT_FILE,
    styled_figures,
    to_svg,
    write_page,
)
from resunet_ray.report.run_pictures import list_tables, picture_images, picture_slides
from resunet_ray.segment import layout

_SHOWN = 12  # images to look at first
_SLIDES = 50
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
    *("format", "file_id", "scene", "t", "z"),
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
    failures: Counter[tuple[str, str, str]] = field(default_factory=Counter)
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
        # An earlier version wrote no kinds.
        failures = failed.reindex(columns=["error_stage", "error_type", "error_kind"])
        self.failures.update(failures.astype(object).fillna("").itertuples(index=False, name=None))
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
    for uri in list_tables(storage.join(output, layout.IMAGES, run_id)):
        summary.add(storage.read_table(uri, columns=_COLUMNS).to_pandas())
    measures = {name: np.concatenate(values) for name, values in summary.measures.items()}
    config = load_config(json.dumps(record["config"]), kind=SegmentConfig, source=layout.RUN_FILE)
    return write_page(
        storage.join(folder, REPORT_FILE),
        template="segmentation.html",
        run_id=run_id,
        record=record,
        result=record["result"],
        cost=record["result"].get("cost", {}),  # as those
        passed_over=record["result"].get("passed_over", {}),  # not in runs of an earlier version
        distributions=_draw_distributions(measures) if len(summary.suspects) else None,
        reasons=dict(summary.reasons.most_common()),
        suspects=picture_images(summary.suspects, config, output, run_id),
        failures=[
            {"stage": stage, "type": name, "kind": kind, "count": count}
            for (stage, name, kind), count in summary.failures.most_common()
        ],
        failed=summary.failed,
        slides=picture_slides(summary.slides, config, output, run_id),
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
