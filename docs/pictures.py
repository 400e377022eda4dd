"""Takes the pictures of the three reports in docs/pictures/, with Chromium.

The images are generated; the scores of the sweep are made up.

python docs/pictures.py
"""

import subprocess
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from resunet_ray import bundles, storage
from resunet_ray.bundle_info import copy_bundle
from resunet_ray.config import (
    EvaluateConfig,
    PrepareConfig,
    SegmentConfig,
    SweepConfig,
    TrainConfig,
)
from resunet_ray.data.prepare import prepare
from resunet_ray.data.synthetic import write_images
from resunet_ray.evaluate import evaluate
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.report.evaluation import write_evaluation_report
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.report.sweep import write_sweep_report
from resunet_ray.segment.run import segment
from resunet_ray.sweep.space import parse_space
from resunet_ray.sweep.study import Study
from resunet_ray.sweep.trials import Status, Trial, save_trial, trial_folder
from resunet_ray.sweep.winner import conclude
from resunet_ray.train.tracking import HISTORY_FILE

PICTURES = Path(__file__).parent / "pictures"

_EPOCHS = 27
_RUNGS = (3, 9)  # epochs at which ASHA compares, with its reduction factor of 3
_FAILED = "the training loss of epoch 1 is nan: lower --learning-rate"
_WIDTH = 1200  # pixels, like the heights
_HEIGHTS = {"evaluation": 2200, "segmentation": 1330, "sweep": 1745}  # the top of each page


def main() -> None:
    """Make the pages in a temporary folder, and take their pictures."""
    with tempfile.TemporaryDirectory() as folder:
        images = f"{folder}/images"
        write_images(images, count=40, height=192, width=224, seed=0)
        pages = {
            "evaluation": _evaluate(images, f"{folder}/evaluation"),
            "segmentation": _segment(images, f"{folder}/segmentation"),
            "sweep": _sweep(f"{folder}/sweep"),
        }
        for name, page in pages.items():
            html = Path(page).read_text().replace(folder, "/data")
            _take_picture(html, PICTURES / f"{name}.png", height=_HEIGHTS[name])


def _evaluate(images: str, output: str) -> str:
    """Score the bundle `nuclei` on most of the images."""
    config = PrepareConfig(
        input=(images,),
        output=f"{output}/data",
        metadata=f"{images}/metadata.csv",
        split="fraction",
        val_fraction=0.1,
        test_fraction=0.8,
    )
    prepare(config)
    evaluate(EvaluateConfig(data=config.output, output=output))
    return write_evaluation_report(output, history=None)


def _segment(images: str, output: str) -> str:
    """Segment the images with the bundle `nuclei`."""
    (result,) = segment(SegmentConfig(input=(f"{images}/images",), output=output, actors=0))
    assert result.run_id is not None
    return write_segmentation_report(output, run_id=result.run_id)


def _sweep(output: str) -> str:
    """Write trials whose scores come from a formula, and conclude the sweep from them."""
    config = SweepConfig(
        training=TrainConfig(data="data/nuclei", output=output, epochs=_EPOCHS),
        space=(
            "learning_rate=loguniform:1e-4,1e-2",
            "batch_size=choice:4,8,16",
            "loss=choice:bce,dice,bce_dice",
            "clip_norm=choice:none,1",
        ),
        trials=24,
        grace_epochs=_RUNGS[0],
    )
    space = parse_space(config.space, config.training)
    trials: list[Trial] = []
    free_at = [datetime(2025, 3, 1, 20, tzinfo=UTC)] * config.concurrent
    reached: dict[int, list[float]] = {epoch: [] for epoch in _RUNGS}
    with Study(config, space, []) as study:
        for number in range(config.trials):
            started = free_at.pop(0)
            trial = Trial(number, study.suggest(number), started.isoformat())
            trial, seconds = _invent(trial, output=output, reached=reached)
            finished = started + timedelta(seconds=seconds)
            trials.append(replace(trial, finished_at=finished.isoformat()))
            save_trial(output, trials[-1])
            study.end(trials[-1])
            free_at = sorted([*free_at, finished])
    conclude(config, space, trials, lease=storage.NO_LEASE)
    return write_sweep_report(output)


def _invent(trial: Trial, *, output: str, reached: dict[int, list[float]]) -> tuple[Trial, int]:
    """Write a trial's history up to where ASHA would stop it; returns the trial and its seconds.

    Args:
        trial: a new trial.
        output: location of the sweep.
        reached: scores at each rung, to which this trial's are added.
    """
    rate, batch = trial.parameters["learning_rate"], trial.parameters["batch_size"]
    if rate > 7e-3:
        return replace(trial, status="failed", reason=_FAILED), 20
    rng = np.random.default_rng(trial.number)
    loss = {"bce": 0.0, "dice": 0.01, "bce_dice": 0.025}[trial.parameters["loss"]]
    final = 0.92 - 0.06 * np.log10(rate / 1.5e-3) ** 2 + loss - 0.002 * batch
    epochs = np.arange(1, _EPOCHS + 1)
    scores = final - 0.35 * np.exp(-epochs * (0.15 + 60 * rate)) + rng.normal(0, 0.006, _EPOCHS)
    status: Status = "completed"
    for epoch, others in reached.items():
        others.append(float(scores[epoch - 1]))
        if len(others) > 3 and others[-1] < np.quantile(others, 2 / 3):
            status, scores, epochs = "stopped", scores[:epoch], epochs[:epoch]
            break
    history = pd.DataFrame({"epoch": epochs, "train_loss": 0.9 - scores, "val_loss": 1 - scores})
    history = history.assign(seconds=6 + 40 / batch, images_per_second=20.0)
    history = history.assign(**{f"val_{name}": scores for name in SCORE_NAMES})
    folder = trial_folder(output, trial.number)
    storage.write_bytes(storage.join(folder, HISTORY_FILE), history.to_csv(index=False).encode())
    if status == "completed":
        copy_bundle(bundles.locate("nuclei"), storage.join(folder, "bundle"), provenance={})
    reason = None if status == "completed" else f"after epoch {epochs[-1]}, at {scores[-1]:.4f}"
    return replace(trial, status=status, reason=reason), int(history["seconds"].sum())


def _take_picture(html: str, picture: Path, *, height: int) -> None:
    """Save the top of a page as a PNG with a palette, which keeps it small."""
    with tempfile.TemporaryDirectory() as folder:
        page, full = Path(folder) / "page.html", Path(folder) / "page.png"
        page.write_text(html)
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={_WIDTH},{height}"]
        command += [f"--screenshot={full}", f"file://{page}"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 (ours)
        colours = Image.open(full).convert("RGB")
        colours.quantize(method=Image.Quantize.FASTOCTREE).save(picture, optimize=True)


if __name__ == "__main__":
    main()
