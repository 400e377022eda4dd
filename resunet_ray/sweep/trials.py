"""The trials of a sweep in storage: what each tried, how it ended, and the scores in its history.

A trial is saved before it starts and again when it has ended. Its scores are read from the
history.csv of its training run, so that every score in a table is one that the run recorded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from resunet_ray import storage
from resunet_ray.config import TrainConfig, lower_is_better
from resunet_ray.model.metrics import SCORE_NAMES
from resunet_ray.schema import TRIALS
from resunet_ray.sweep.space import Parameters
from resunet_ray.train.tracking import HISTORY_FILE, read_history

TRIALS_FOLDER = "trials"
Status = Literal["unfinished", "completed", "stopped", "failed"]

_TRIAL_FILE, _ERROR_FILE = "trial.json", "error.txt"


@dataclass(frozen=True)
class Trial:
    """One point of the space, and how training with it ended."""

    number: int
    """Counts from 0, in the order in which trials were created."""
    parameters: Parameters
    """Values of the searched fields."""
    started_at: str
    """When the trial was first saved, ISO 8601, UTC."""
    status: Status = "unfinished"
    """completed: trained to its last epoch. stopped: by the scheduler. failed: see `reason`.
    unfinished: resumes next time."""
    reason: str | None = None
    """Why the trial failed or was stopped."""
    finished_at: str | None = None
    """When the trial ended, ISO 8601, UTC."""

    @property
    def name(self) -> str:
        """Name of the training run, and of its folder under trials/."""
        return trial_name(self.number)


def trial_name(number: int) -> str:
    """Return the name of a trial's training run, which is also its name in Tune."""
    return f"trial-{number:04d}"


def trial_folder(output: str, number: int) -> str:
    """Return the location of a trial's training run."""
    return storage.join(output, TRIALS_FOLDER, trial_name(number))


def list_trials(output: str) -> list[Trial]:
    """Return all trials by number. A trial is saved only after the one before it."""
    trials: list[Trial] = []
    while True:
        uri = storage.join(trial_folder(output, len(trials)), _TRIAL_FILE)
        if not storage.exists(uri):
            return trials
        trials.append(Trial(**json.loads(storage.read_bytes(uri))))


def save_trial(output: str, trial: Trial) -> None:
    """Write a trial's file."""
    storage.write_bytes(
        storage.join(trial_folder(output, trial.number), _TRIAL_FILE),
        json.dumps(asdict(trial), indent=2).encode(),
    )


def start_trial(output: str, *, number: int, parameters: Parameters) -> Trial:
    """Create and save a new trial."""
    trial = Trial(number, parameters, _now())
    save_trial(output, trial)
    return trial


def end_trial(output: str, trial: Trial, *, status: Status, reason: str | None = None) -> Trial:
    """Save how a trial ended, and return the trial."""
    ended = replace(trial, status=status, reason=reason, finished_at=_now())
    save_trial(output, ended)
    return ended


def save_error(folder: str, message: str | None) -> None:
    """Save why a trial failed, for the driver to read; None deletes an earlier attempt's reason."""
    uri = storage.join(folder, _ERROR_FILE)
    if message is None:
        storage.delete_file(uri)
    else:
        storage.write_bytes(uri, message.encode())


def read_error(output: str, trial: Trial) -> str | None:
    """Return why the trial failed, or None if the trial saved no error."""
    uri = storage.join(trial_folder(output, trial.number), _ERROR_FILE)
    return storage.read_bytes(uri).decode() if storage.exists(uri) else None


def read_validations(output: str, trial: Trial) -> pd.DataFrame:
    """Read the validated epochs of a trial from its history.csv.

    Columns are `epoch`, `loss` and the scores by name, and `seconds` of training so far.
    """
    uri = storage.join(trial_folder(output, trial.number), HISTORY_FILE)
    if not storage.exists(uri):
        return pd.DataFrame(
            {
                name: pd.Series(dtype=float)
                for name in ("epoch", "loss", *SCORE_NAMES, "seconds", "images_per_second")
            }
        )
    history = read_history(uri)
    history["seconds"] = history["seconds"].cumsum()
    validated = history[history["val_loss"].notna()]
    return validated.rename(columns=lambda name: name.removeprefix("val_"))


def best_row(validations: pd.DataFrame, monitor: str) -> Mapping[str, Any] | None:
    """Return the validation with the best score, the first of equals; None if there is none."""
    if validations.empty:
        return None
    scores = validations[monitor]
    return dict(validations.loc[scores.idxmin() if lower_is_better(monitor) else scores.idxmax()])


def tabulate(output: str, trials: Sequence[Trial], *, training: TrainConfig) -> pa.Table:
    """Return the table of trials: one row each by number, with a column for each searched field.

    The schema is `TRIALS`, followed by a column `config.FIELD` for each field.
    """
    rows = []
    for trial in trials:
        validations = read_validations(output, trial)
        best = best_row(validations, training.monitor) or {}
        bundle = (
            storage.join(trial_folder(output, trial.number), "bundle")
            if trial.status == "completed"
            else None
        )
        row = {
            **asdict(trial),
            "trial": trial.number,
            "name": trial.name,
            "monitor": training.monitor,
            "score": best.get(training.monitor),
            "bundle": bundle,
        }
        row |= {name: best.get(name) for name in ("epoch", "loss", *SCORE_NAMES)}
        row |= {
            "epochs": int(validations["epoch"].max()) if best else 0,
            "seconds": float(validations["seconds"].max()) if best else 0.0,
        }
        rows.append({name: _plain(row[name]) for name in TRIALS.names})
    table = pa.Table.from_pylist(rows, schema=TRIALS)
    for name in trials[0].parameters if trials else ():
        values = [trial.parameters[name] for trial in trials]
        table = table.append_column(f"config.{name}", pa.array(values))
    return table


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
