"""What a run leaves to look at: history.csv, TensorBoard's event files, and MLflow's records where asked for."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pandas as pd
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from resunet_ray import storage
from resunet_ray.config import TrainConfig
from resunet_ray.errors import ConfigError

HISTORY_FILE = "history.csv"
EVENTS_FOLDER = "tensorboard"


def run_folder(config: TrainConfig) -> str:
    """Where a run keeps what is its own."""
    return storage.join(config.output, config.name)


def read_history(uri: str) -> pd.DataFrame:
    """A history.csv: one row an epoch, validation columns empty where none was made."""
    return pd.read_csv(BytesIO(storage.read_bytes(uri)))


def save_hyperparameters(folder: str, parameters: Mapping[str, Any], *, metric: str) -> None:
    """Writes hyperparameters beside a run's curves, for TensorBoard's table of them.

    Args:
        folder: of the run.
        parameters: by name; what is no number, truth value or word is shown as text.
        metric: validation score to list beside them.
    """
    shown = {name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in parameters.items()}
    with tempfile.TemporaryDirectory() as local:
        writer = SummaryWriter(local, filename_suffix=".hyperparameters")
        for summary in hparams(shown, {_tag(f"val_{metric}"): 0.0}):
            writer.file_writer.add_summary(summary)
        writer.close()
        _copy_events(Path(local), folder)


def _tag(column: str) -> str:
    """Of a column of history.csv in TensorBoard."""
    return column.replace("val_", "validation/")


def _copy_events(local: Path, folder: str) -> None:
    for file in local.iterdir():
        storage.write_bytes(storage.join(folder, EVENTS_FOLDER, file.name), file.read_bytes())


class Tracker:
    """Writes each epoch's values to the run's folder as they come; the first worker has it."""

    def __init__(self, config: TrainConfig, *, epochs: int) -> None:
        """Prepares the places; `epochs` were already written before a restart."""
        self.status = "FINISHED"
        self._uri = run_folder(config)
        self._config = config
        self._folder = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._folder.name, purge_step=epochs + 1, write_to_disk=True)
        self._mlflow = _MLflow(config) if config.mlflow is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if self._mlflow is not None:
            self._mlflow.close(self.status if kind is None else "FAILED")
        self._folder.cleanup()

    def write(self, history: Sequence[Mapping[str, float]], *, new: int) -> None:
        """Writes the whole history again, and adds its last `new` rows to the logs."""
        storage.write_bytes(storage.join(self._uri, HISTORY_FILE), pd.DataFrame(history).to_csv(index=False).encode())
        for row in history[-new:]:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(_tag(name), value, int(row["epoch"]))
            if self._mlflow is not None:
                self._mlflow.write(row)
        self._writer.flush()
        _copy_events(Path(self._folder.name), self._uri)


class _MLflow:
    """One MLflow run for each training run, found again by its name after a restart."""

    def __init__(self, config: TrainConfig) -> None:
        mlflow = import_mlflow()
        assert config.mlflow is not None, "only made where a tracking URI is given"
        self._client = mlflow.MlflowClient(tracking_uri=config.mlflow)
        experiment = self._client.get_experiment_by_name("resunet_ray")
        number = experiment.experiment_id if experiment else self._client.create_experiment("resunet_ray")
        name = run_folder(config).replace("'", "")
        found = self._client.search_runs([number], filter_string=f"tags.mlflow.runName = '{name}'")
        self._run = found[0] if found else self._client.create_run(number, run_name=name)
        self._client.update_run(self._run.info.run_id, status="RUNNING")
        if not found:
            for key, value in asdict(config).items():
                self._client.log_param(self._run.info.run_id, key, str(value)[:500])

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run.info.run_id, status=status)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._client.log_metric(self._run.info.run_id, name, value, step=int(row["epoch"]))


def import_mlflow() -> Any:
    """The MLflow module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import mlflow
    except ImportError:
        raise ConfigError("--mlflow needs the package mlflow-skinny: pip install 'resunet_ray[mlflow]'") from None
    return mlflow
