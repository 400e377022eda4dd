"""The report of a sweep. It reads the tables that are written and computes no score."""

import json
from collections.abc import Collection
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resunet_ray import storage
from resunet_ray.config import lower_is_better
from resunet_ray.report.page import COLOURS, REPORT_FILE, to_svg, write_page
from resunet_ray.sweep.trials import list_trials, read_validations
from resunet_ray.sweep.winner import SUMMARY_FILE, TABLE_FILE

_STATUS_COLOURS = {
    "completed": COLOURS[2],
    "stopped": COLOURS[4],
    "failed": COLOURS[1],
    "unfinished": "#8a94a3",
}
_PREFIX = "config."
_LOG_RATIO = 8  # a searched range that is wider is drawn on a logarithmic axis


def write_sweep_report(output: str) -> str:
    """Writes report.html beside a sweep's tables, and returns where."""
    output = storage.absolute(output)
    summary = json.loads(storage.read_bytes(storage.join(output, SUMMARY_FILE)))
    rows = storage.read_table(storage.join(output, TABLE_FILE)).to_pandas()
    names = [name.removeprefix(_PREFIX) for name in rows.columns if name.startswith(_PREFIX)]
    monitor = summary["monitor"]
    scored = rows[rows["score"].notna()]
    ranked = rows.sort_values(
        "score", ascending=lower_is_better(monitor), na_position="last", kind="stable"
    )
    return write_page(
        storage.join(output, REPORT_FILE),
        template="sweep.html",
        summary=summary,
        config=summary["config"],
        names=names,
        minutes=_minutes(rows),
        trials=[
            {**row, "parameters": [_label(row[_PREFIX + name]) for name in names]}
            for row in _records(ranked)
        ],
        curves=_draw_curves(output, monitor) if len(scored) else None,
        progress=_draw_progress(scored, monitor) if len(scored) else None,
        coordinates=_draw_coordinates(scored, names, monitor) if len(scored) > 1 else None,
        scatter=_draw_scatter(scored, names, monitor) if len(scored) else None,
        importance=_draw_importance(summary["importance"]) if summary["importance"] else None,
    )


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Plain values; what is missing is None."""
    plain = rows.astype(object).where(rows.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _minutes(rows: pd.DataFrame) -> float:
    begun = pd.to_datetime(rows["started_at"]).min()
    return float((pd.to_datetime(rows["finished_at"]).max() - begun).total_seconds() / 60)


def _label(value: Any) -> str:
    if pd.isna(value):
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _draw_curves(output: str, monitor: str) -> str:
    """Every trial's validations, by how it ended."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axis = figure.subplots()
    trials = list_trials(output)
    for trial in trials:
        validations = read_validations(output, trial)
        colour = _STATUS_COLOURS[trial.status]
        axis.plot(validations["epoch"], validations[monitor], color=colour, marker=".", alpha=0.8)
        if len(validations):
            last = validations.iloc[-1]
            axis.annotate(
                str(trial.number),
                (last["epoch"], last[monitor]),
                fontsize=7,
                xytext=(3, 0),
                textcoords="offset points",
            )
    _finish(axis, x="epoch", y=f"validation {monitor}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _show_statuses(axis, dict.fromkeys(trial.status for trial in trials))
    return to_svg(figure)


def _show_statuses(axis: Axes, shown: Collection[str]) -> None:
    for status in shown:
        colour = _STATUS_COLOURS[status]
        axis.plot([], [], color=colour, marker="o", linestyle="", label=status)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _finish(axis: Axes, *, x: str, y: str) -> None:
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_progress(scored: pd.DataFrame, monitor: str) -> str:
    """Each trial's best score when it ended, and the best so far."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    axis = figure.subplots()
    ended = scored[scored["finished_at"].notna()].sort_values("finished_at")
    begun = pd.to_datetime(scored["started_at"]).min()
    minutes = (pd.to_datetime(ended["finished_at"]) - begun).dt.total_seconds() / 60
    axis.scatter(minutes, ended["score"], c=ended["status"].map(_STATUS_COLOURS), s=22, zorder=3)
    for minute, score, number in zip(minutes, ended["score"], ended["trial"], strict=True):
        axis.annotate(
            str(number), (minute, score), fontsize=7, xytext=(4, 3), textcoords="offset points"
        )
    best = ended["score"].cummin() if lower_is_better(monitor) else ended["score"].cummax()
    axis.step(minutes, best, where="post", color=COLOURS[0], linewidth=1.2)
    _finish(axis, x="minutes since the first trial began", y=f"best {monitor}")
    _show_statuses(axis, ended["status"].unique())
    return to_svg(figure)


def _draw_coordinates(scored: pd.DataFrame, names: list[str], monitor: str) -> str:
    """One line a trial through its parameters to its score; the brighter, the better."""
    columns = [scored[_PREFIX + name] for name in names] + [scored["score"]]
    placed = np.stack([_place(column)[0] for column in columns])
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axis = figure.subplots()
    shade = 1 - placed[-1] if lower_is_better(monitor) else placed[-1]
    for trial in np.argsort(shade):
        axis.plot(placed[:, trial], color=mpl.colormaps["viridis"](float(shade[trial])), alpha=0.85)
    for position, (name, column) in enumerate(zip([*names, monitor], columns, strict=True)):
        axis.axvline(position, color="#b9c1cc", linewidth=0.8, zorder=0)
        for height, text in _place(column)[1]:
            axis.annotate(
                text,
                (position, height),
                fontsize=7,
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        axis.annotate(name, (position, 1.06), fontsize=8, ha="center", annotation_clip=False)
    axis.set_xlim(-0.2, len(columns) - 0.6)
    axis.set_ylim(-0.05, 1.15)
    axis.axis("off")
    return to_svg(figure)


def _place(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where each value stands on an axis from 0 to 1, and that axis's ticks."""
    if not _is_range(column):
        labels = column.map(_label)
        known = _sort_labels(labels)
        heights = np.linspace(0, 1, len(known)) if len(known) > 1 else np.array([0.5])
        return labels.map(dict(zip(known, heights, strict=True))).to_numpy(float), list(
            zip(heights.tolist(), known, strict=True)
        )
    values = column.to_numpy(float)
    values = np.log(values) if _is_wide(column) else values
    low, high = values.min(), values.max()
    ends = [(0.0, _label(float(column.min()))), (1.0, _label(float(column.max())))]
    return (values - low) / (high - low), ends


def _is_range(column: pd.Series) -> bool:
    return column.dtype.kind == "f" and bool(column.notna().all()) and column.nunique() > 1


def _is_wide(column: pd.Series) -> bool:
    return bool(column.min() > 0 and column.max() / column.min() > _LOG_RATIO)


def _sort_labels(labels: pd.Series) -> list[str]:
    """Numbers by size, then words."""
    return sorted(
        labels.unique(),
        key=lambda label: (
            (0, float(label), "") if label.replace(".", "", 1).isdigit() else (1, 0.0, label)
        ),
    )


def _draw_scatter(scored: pd.DataFrame, names: list[str], monitor: str) -> str:
    """The score against each parameter."""
    figure = Figure(figsize=(11, 2.8 * -(-len(names) // 3)), layout="constrained")
    axes = figure.subplots(
        -(-len(names) // 3), min(3, len(names)), squeeze=False, sharey=True
    ).ravel()
    for axis, name in zip(axes, names, strict=False):
        column = scored[_PREFIX + name]
        places, ticks = _place(column)
        axis.scatter(
            column if _is_range(column) else places,
            scored["score"],
            c=scored["status"].map(_STATUS_COLOURS),
            s=22,
        )
        if not _is_range(column):
            axis.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
            axis.set_xlim(-0.15, 1.15)
        elif _is_wide(column):
            axis.set_xscale("log")
        _finish(axis, x=name, y=f"best {monitor}")
    for axis in axes[len(names) :]:
        axis.axis("off")
    return to_svg(figure)


def _draw_importance(importance: dict[str, float]) -> str:
    figure = Figure(figsize=(11, 0.5 + 0.35 * len(importance)), layout="constrained")
    axis = figure.subplots()
    names = sorted(importance, key=lambda name: importance[name])
    axis.barh(names, [importance[name] for name in names], color=COLOURS[0])
    for name in names:
        axis.annotate(
            f"{importance[name]:.2f}",
            (importance[name], name),
            fontsize=8,
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    _finish(axis, x="importance", y="")
    return to_svg(figure)
