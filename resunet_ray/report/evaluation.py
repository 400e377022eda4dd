"""The report of an evaluation. It reads the evaluation's tables and computes no metric."""

import base64
import json
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from resunet_ray import bundles, storage
from resunet_ray.config import EvaluateConfig
from resunet_ray.errors import InputError
from resunet_ray.evaluate import OUTCOMES_FILE, PICTURES, SCORES_FILE, SUMMARY_FILE
from resunet_ray.model.matching import OUTCOMES, THRESHOLDS
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.pictures import OUTCOME_COLOURS
from resunet_ray.report.page import (
    COLOURS,
    FIGURE_WIDTH,
    REPORT_FILE,
    styled_figures,
    to_svg,
    write_page,
)
from resunet_ray.train.tracking import HISTORY_FILE, read_history

_SHOWN = 8  # pictures of the worst images, and of the best
_INSTANCE_SCORES = ("ap50", "ap75", "ap", "pq", "aji")


def find_history(config: EvaluateConfig) -> str | None:
    """Find the training history that belongs to an evaluation; None: there is none.

    Raises:
        InputError: the configuration names one that does not exist.
    """
    if config.history is None:
        beside = storage.join(storage.parent(bundles.locate(config.bundle)), HISTORY_FILE)
        return beside if storage.exists(beside) else None
    if not storage.exists(config.history):
        raise InputError(
            f"--history {config.history} does not exist: leave it out to use the one beside the "
            "bundle"
        )
    return config.history


@styled_figures
def write_evaluation_report(output: str, *, history: str | None) -> str:
    """Write report.html beside an evaluation's tables; returns its location.

    Args:
        output: location that `evaluate` wrote to.
        history: the training run's history.csv, for its curves; None draws none.
    """
    summary = json.loads(storage.read_bytes(storage.join(output, SUMMARY_FILE)))
    table = storage.read_table(storage.join(output, SCORES_FILE)).to_pandas()
    if summary["instance"]:
        known = _join_outcomes(table, output)
        ranked = known.sort_values(["ap50", "f1"], kind="stable")
        precision, counts = _draw_precision(known), _count_nuclei(known)
    else:
        ranked = table.sort_values("f1", kind="stable")
        precision, counts = None, None
    worst = ranked.head(_SHOWN)
    best = ranked.iloc[len(worst) :].tail(_SHOWN).iloc[::-1]
    return write_page(
        storage.join(output, REPORT_FILE),
        template="evaluation.html",
        summary=summary,
        scores=SCORE_NAMES,
        instance_scores=_INSTANCE_SCORES if summary["instance"] else (),
        precision=precision,
        counts=counts,
        colours=OUTCOME_COLOURS,
        distributions=_draw_distributions(table),
        curves=_draw_curves(read_history(history)) if history else None,
        worst=_shown_images(worst, output),
        best=_shown_images(best, output),
    )


def _join_outcomes(table: pd.DataFrame, output: str) -> pd.DataFrame:
    """Return the images with instances, with a column `ap50` and those of outcomes.parquet."""
    outcomes = storage.read_table(storage.join(output, OUTCOMES_FILE)).to_pandas()
    known = table.join(outcomes[list(OUTCOMES)])[table["pq"].notna()]
    return known.assign(ap50=known["ap"].str[0])


def _count_nuclei(known: pd.DataFrame) -> pd.DataFrame:
    """Sum the nuclei of each kind over all images, and over those of each modality."""
    counts = known[["num_true", "num_found", *OUTCOMES]].astype(int)
    by_modality = counts.groupby(known["modality"].fillna("unknown")).sum()
    return pd.concat([counts.sum().to_frame("all images").T, by_modality])


def _shown_images(rows: pd.DataFrame, output: str) -> list[dict[Any, Any]]:
    shown: list[dict[Any, Any]] = rows.fillna({"modality": "unknown"}).to_dict("records")
    for row in shown:
        picture = storage.read_bytes(
            storage.join(output, PICTURES, f"{storage.file_name(row['image_id'])}.png")
        )
        row["picture"] = base64.b64encode(picture).decode()
    return shown


def _draw_distributions(table: pd.DataFrame) -> str:
    """One histogram of images for each score, stacked by modality."""
    figure = Figure(figsize=(FIGURE_WIDTH, 2.8), layout=ConstrainedLayoutEngine(wspace=0.06))
    modality = table["modality"].fillna("unknown")
    names = sorted(modality.unique())
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
    axes = figure.subplots(1, len(SCORE_NAMES), sharey=True)
    for axis, score in zip(axes, SCORE_NAMES, strict=True):
        values = [table.loc[modality == name, score] for name in names]
        mean, low = table[score].mean(), min(0.9, float(np.floor(table[score].min() * 10) / 10))
        axis.hist(
            values, bins=np.linspace(low, 1, 25).tolist(), stacked=True, color=colours, label=names
        )
        axis.axvline(mean, color="black", linewidth=1, linestyle="--")
        axis.set_title(f"mean {mean:.4f}")
        axis.set_xlabel(score)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0].set_ylabel("images")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(names))
    )
    return to_svg(figure)


def _draw_precision(known: pd.DataFrame) -> str:
    """Average precision at each IoU threshold, by modality."""
    figure = Figure(figsize=(FIGURE_WIDTH / 2, 2.8), layout="constrained")
    axis = figure.subplots()
    groups = known.groupby(known["modality"].fillna("unknown"))["ap"]
    for number, (name, precision) in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        axis.plot(THRESHOLDS, np.stack(precision).mean(axis=0), color=colour, label=name)
    mean = np.stack(known["ap"]).mean(axis=0)
    axis.plot(THRESHOLDS, mean, color="black", linestyle="--", label="all images")
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("IoU threshold")
    axis.set_ylabel("mean AP")
    figure.legend(loc="outside right upper")
    return to_svg(figure)


def _draw_curves(history: pd.DataFrame) -> str:
    """Loss, validation scores and learning rate over the epochs."""
    figure = Figure(figsize=(FIGURE_WIDTH, 3.0), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    validated = history[history["val_loss"].notna()]
    epochs = validated["epoch"]
    loss.plot(
        history["epoch"], history["train_loss"], color=COLOURS[0], marker=".", label="training"
    )
    loss.plot(epochs, validated["val_loss"], color=COLOURS[2], marker=".", label="validation")
    loss.set_title("loss")
    for name, colour in zip(("f1", "jaccard", "recall", "precision"), COLOURS, strict=False):
        score.plot(epochs, validated[f"val_{name}"], color=colour, marker=".", label=name)
    score.set_title("validation scores, at the best threshold")
    rate.plot(history["epoch"], history["learning_rate"], color=COLOURS[0], marker=".")
    rate.set_title("learning rate at the end of the epoch")
    for axis in (loss, score):
        axis.legend()
    for axis in figure.axes:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return to_svg(figure)
