"""The report of an evaluation. It reads the tables that are written and computes no metric."""

import base64
import json
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resunet_ray import bundles, storage
from resunet_ray.config import EvaluateConfig
from resunet_ray.errors import InputError
from resunet_ray.evaluate import PICTURES, SCORES_FILE, SUMMARY_FILE
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.report.page import COLOURS, REPORT_FILE, to_svg, write_page
from resunet_ray.train.tracking import HISTORY_FILE, read_history

_SHOWN = 8  # pictures at each end of the ranking
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


def write_evaluation_report(output: str, *, history: str | None) -> str:
    """Writes report.html beside an evaluation's tables, and returns where.

    Args:
        output: what `evaluate` wrote to.
        history: history.csv of the training, whose curves are drawn; None: no curves.
    """
    summary = json.loads(storage.read_bytes(storage.join(output, SUMMARY_FILE)))
    table = storage.read_table(storage.join(output, SCORES_FILE)).to_pandas()
    ranked = table.sort_values("f1", kind="stable")
    worst = ranked.head(_SHOWN)
    best = ranked.iloc[len(worst) :].tail(_SHOWN).iloc[::-1]
    return write_page(
        storage.join(output, REPORT_FILE),
        template="evaluation.html",
        summary=summary,
        scores=SCORE_NAMES,
        instance_scores=_INSTANCE_SCORES if summary["instance"] else (),
        distributions=_draw_distributions(table),
        curves=_draw_curves(read_history(history)) if history else None,
        worst=_shown_images(worst, output),
        best=_shown_images(best, output),
    )


def _shown_images(rows: pd.DataFrame, output: str) -> list[dict[Any, Any]]:
    shown: list[dict[Any, Any]] = rows.fillna({"modality": "unknown"}).to_dict("records")
    for row in shown:
        picture = storage.read_bytes(
            storage.join(output, PICTURES, f"{storage.file_name(row['image_id'])}.png")
        )
        row["picture"] = base64.b64encode(picture).decode()
    return shown


def _draw_distributions(table: pd.DataFrame) -> str:
    """How many images have which score: one small histogram a score, stacked by modality."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    modality = table["modality"].fillna("unknown")
    names = sorted(modality.unique())
    for axis, score in zip(
        figure.subplots(1, len(SCORE_NAMES), sharey=True), SCORE_NAMES, strict=True
    ):
        values = [table.loc[modality == name, score] for name in names]
        low = min(0.9, float(np.floor(table[score].min() * 10) / 10))
        colours = [COLOURS[number % len(COLOURS)] for number in range(len(names))]
        axis.hist(
            values, bins=np.linspace(low, 1, 25).tolist(), stacked=True, color=colours, label=names
        )
        axis.axvline(table[score].mean(), color="black", linewidth=1, linestyle="--")
        axis.set_title(f"{score} (mean {table[score].mean():.4f})", fontsize=9)
        axis.tick_params(labelsize=8)
    figure.axes[0].set_ylabel("images", fontsize=8)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(names),
        fontsize=8,
        frameon=False,
    )
    return to_svg(figure)


def _draw_curves(history: pd.DataFrame) -> str:
    """Loss, validation scores and learning rate over the epochs."""
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    loss, score, rate = figure.subplots(1, 3)
    validated = history[history["val_loss"].notna()]
    loss.plot(history["epoch"], history["train_loss"], color=COLOURS[0], label="training")
    loss.plot(
        validated["epoch"], validated["val_loss"], color=COLOURS[1], marker=".", label="validation"
    )
    loss.set_title("loss", fontsize=9)
    for name, colour in zip(("f1", "jaccard", "recall", "precision"), COLOURS, strict=False):
        score.plot(
            validated["epoch"], validated[f"val_{name}"], color=colour, marker=".", label=name
        )
    score.set_title("validation scores, at the best threshold", fontsize=9)
    rate.plot(history["epoch"], history["learning_rate"], color=COLOURS[3])
    rate.set_title("learning rate at the end of the epoch", fontsize=9)
    for axis in (loss, score):
        axis.legend(fontsize=8, frameon=False)
    for axis in figure.axes:
        axis.set_xlabel("epoch", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return to_svg(figure)
