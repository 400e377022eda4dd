"""The figures of a sweep's report: each is drawn from the sweep's tables as an `<svg>` element."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from resunet_ray.config import lower_is_better
from resunet_ray.report.page import COLOURS, FIGURE_WIDTH, to_svg
from resunet_ray.sweep.trials import list_trials, read_validations

PREFIX = "config."
"""Prefix of the columns of searched fields in trials.parquet."""

_STATUSES = {
    "completed": (COLOURS[0], "o"),
    "stopped": (COLOURS[1], "s"),
    "failed": (COLOURS[2], "X"),
    "unfinished": ("#8a94a3", "D"),
}
"""Colour and marker of a trial, by how it ended."""

_LOG_RATIO = 8  # from here between largest and smallest value, an axis is logarithmic
_MOST_CHOICES = 6  # different whole numbers that are drawn as choices; more are drawn as a range


def format_value(value: Any) -> str:
    """Format the value of a field."""
    if pd.isna(value):
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw_progress(ended: pd.DataFrame, monitor: str) -> str:
    """Draw each trial's best score when it ended, and the best so far.

    Args:
        ended: trials that have ended with a score; `minutes` is when, since the first started.
        monitor: name of the score.
    """
    figure = Figure(figsize=(FIGURE_WIDTH, 3.0), layout="constrained")
    axis = figure.subplots()
    ended = ended.sort_values("minutes", kind="stable")
    lower = lower_is_better(monitor)
    best = ended["score"].cummin() if lower else ended["score"].cummax()
    axis.step(ended["minutes"], best, where="post", color="#55616f", linewidth=1.2)
    _scatter(axis, ended["minutes"], ended)
    axis.margins(y=0.15)  # room for the numbers
    _label_records(axis, ended[best.diff().ne(0)], below=lower)
    axis.set_xlabel("minutes since the first trial started")
    axis.set_ylabel(f"best {monitor} of the trial")
    _show_statuses(figure, ended["status"])
    return to_svg(figure)


def _label_records(axis: Axes, records: pd.DataFrame, *, below: bool) -> None:
    """Write its number above or below each trial that set a new best.

    A trial whose number would overlap that of a later one gets none.
    """
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    labelled: list[tuple[float, float]] = []
    for _, trial in records[::-1].iterrows():
        place = trial["minutes"], trial["score"]
        x, y = (place[0] - left) / (right - left), (place[1] - bottom) / (top - bottom)
        if all(abs(x - across) > 0.03 or abs(y - up) > 0.1 for across, up in labelled):
            labelled.append((x, y))
            axis.annotate(
                str(trial["trial"]),
                place,
                xytext=(0, -5 if below else 5),
                textcoords="offset points",
                ha="center",
                va="top" if below else "bottom",
            )


def draw_curves(output: str, monitor: str, *, winner: int | None) -> str:
    """Draw every trial's validations, by how it ended; the winner's in bold."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.6), layout="constrained")
    axis = figure.subplots()
    shown = set()
    for trial in list_trials(output):
        validations = read_validations(output, trial)
        if validations.empty:
            continue
        shown.add(trial.status)
        colour, marker = _STATUSES[trial.status]
        epochs, scores = validations["epoch"], validations[monitor]
        (line,) = axis.plot(epochs, scores, color=colour, marker=marker, markersize=3)
        if trial.number == winner:
            line.set(linewidth=2.5, zorder=3)
            axis.annotate(
                f"trial {winner}",
                (epochs.iloc[-1], scores.iloc[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
            )
        else:
            line.set(linewidth=1, alpha=0.6)
    axis.set_xlabel("epoch")
    axis.set_ylabel(f"validation {monitor}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _show_statuses(figure, shown)
    return to_svg(figure)


def _scatter(axis: Axes, places: pd.Series, rows: pd.DataFrame) -> None:
    """Draw a point for each trial at its score, by how it ended."""
    for status, group in rows.groupby("status"):
        colour, marker = _STATUSES[str(status)]
        axis.scatter(
            places[group.index],
            group["score"],
            color=colour,
            marker=marker,
            s=32,
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
        )


def _show_statuses(figure: Figure, shown: Collection[str]) -> None:
    """Add a legend of the statuses that are shown."""
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=status)
        for status, (colour, marker) in _STATUSES.items()
        if status in set(shown)
    ]
    figure.legend(handles=handles, loc="outside right upper")


def draw_coordinates(scored: pd.DataFrame, names: list[str], monitor: str) -> str:
    """Draw a line for each trial through its parameters to its score; the darker, the better."""
    columns = [scored[PREFIX + name] for name in names] + [scored["score"]]
    placed = np.stack([_place(column)[0] for column in columns])
    figure = Figure(figsize=(FIGURE_WIDTH, 3.8), layout="constrained")
    axis = figure.subplots()
    scores = scored["score"].to_numpy()
    lower = lower_is_better(monitor)
    colours = ScalarMappable(
        Normalize(scores.min(), scores.max()), "viridis" if lower else "viridis_r"
    )
    for trial in np.argsort(-scores if lower else scores):  # the best is drawn last, on top
        axis.plot(placed[:, trial], color=colours.to_rgba(scores[trial]), alpha=0.85)
    for position, (name, column) in enumerate(zip([*names, monitor], columns, strict=True)):
        axis.vlines(position, 0, 1, color="#8a94a3", linewidth=0.8, zorder=0)
        for height, text in _place(column)[1]:
            axis.annotate(
                text,
                (position, height),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )
        title = f"{name} (log)" if _is_range(column) and _is_wide(column) else name
        # Neighbouring names of many parameters would overlap on one line.
        raised = "\n" if len(columns) > 6 and position % 2 else ""
        axis.annotate(title + raised, (position, 1.06), ha="center", annotation_clip=False)
    axis.set_xlim(-0.3, len(columns) - 0.6)
    axis.set_ylim(-0.05, 1.2 if len(columns) > 6 else 1.12)
    axis.axis("off")
    figure.colorbar(colours, ax=axis, label=f"best {monitor}", pad=0.01, aspect=30)
    return to_svg(figure)


def _place(column: pd.Series) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Place values on an axis from 0 to 1; returns their places, and the ticks with labels."""
    if not _is_range(column):
        labels = column.map(format_value)
        known = _sort_labels(labels)
        heights = np.linspace(0, 1, len(known)) if len(known) > 1 else np.array([0.5])
        places = labels.map(dict(zip(known, heights, strict=True))).to_numpy(float)
        return places, list(zip(heights.tolist(), known, strict=True))
    values = column.to_numpy(float)
    values = np.log(values) if _is_wide(column) else values
    low, high = values.min(), values.max()
    ends = [(0.0, format_value(column.min())), (1.0, format_value(column.max()))]
    return (values - low) / (high - low), ends


def _is_range(column: pd.Series) -> bool:
    """Whether values are drawn on an axis of numbers, else as choices at equal distances."""
    fewest = {"f": 2, "i": _MOST_CHOICES + 1}.get(column.dtype.kind)
    return fewest is not None and bool(column.notna().all()) and column.nunique() >= fewest


def _is_wide(column: pd.Series) -> bool:
    return bool(column.min() > 0 and column.max() / column.min() > _LOG_RATIO)


def _sort_labels(labels: pd.Series) -> list[str]:
    """Sort numbers by size, then words."""

    def key(label: str) -> tuple[float, str]:
        try:
            return float(label), ""
        except ValueError:
            return np.inf, label

    return sorted(labels.unique(), key=key)


def draw_scatter(scored: pd.DataFrame, names: list[str], monitor: str) -> str:
    """Draw the score against each parameter."""
    rows, columns = -(-len(names) // 3), min(3, len(names))
    figure = Figure(figsize=(FIGURE_WIDTH, 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis, name in zip(axes.ravel(), names, strict=False):
        column = scored[PREFIX + name]
        if _is_range(column):
            _scatter(axis, column, scored)
            if _is_wide(column):
                _make_logarithmic(axis, column)
        else:
            _scatter_choices(axis, column, scored)
        axis.set_xlabel(name)
    for axis in axes.ravel()[len(names) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel(f"best {monitor}")
    _show_statuses(figure, scored["status"])
    return to_svg(figure)


def _scatter_choices(axis: Axes, column: pd.Series, scored: pd.DataFrame) -> None:
    """Draw points above their choice, spread sideways so that equal scores stay visible."""
    places, ticks = _place(column)
    # Steps of the golden ratio keep the points of any few trials apart.
    spread = ((scored["trial"] * 0.618034 + 0.5) % 1 - 0.5) * 0.4 / max(2, len(ticks))
    _scatter(axis, places + spread, scored)
    texts = [text for _, text in ticks]
    axis.set_xticks([place for place, _ in ticks], texts)
    if len("".join(texts)) > 30:  # characters beside each other
        axis.tick_params(axis="x", labelrotation=30)
    axis.set_xlim(-0.2, 1.2)


def _make_logarithmic(axis: Axes, column: pd.Series) -> None:
    """Make the axis logarithmic, with about five plain labels.

    Matplotlib's own labels are formulas, which the figures do not parse.
    """
    decades = np.log10(column.max() / column.min())
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if decades < 1.2 else (1, 3) if decades < 2.5 else (1,))
    )
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def draw_importance(importance: dict[str, float]) -> str:
    """Draw a bar for each parameter, the most important on top."""
    figure = Figure(figsize=(FIGURE_WIDTH, 0.6 + 0.35 * len(importance)), layout="constrained")
    axis = figure.subplots()
    names = sorted(importance, key=lambda name: importance[name])
    bars = axis.barh(names, [importance[name] for name in names], color=COLOURS[0])
    axis.bar_label(bars, fmt="%.2f", padding=4)
    axis.set_xlim(0, 1.05)
    axis.set_xlabel("share of the importance of all parameters")
    return to_svg(figure)
