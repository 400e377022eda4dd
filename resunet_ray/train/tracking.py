"""Records of a run: log lines, metrics, history.csv, TensorBoard events and, optionally, MLflow."""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from queue import Queue
from typing import Any, Self

import pandas as pd
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from resunet_ray import storage
from resunet_ray.config import TrainConfig
from resunet_ray.errors import ConfigError
from resunet_ray.monitoring import Run, show_training

logger = logging.getLogger(__name__)

HISTORY_FILE = "history.csv"
EVENTS_FOLDER = "tensorboard"
_LAST_SECONDS = 60.0  # how long the end of a run waits for MLflow


def run_folder(config: TrainConfig) -> str:
    """Return the folder of a run."""
    return storage.join(config.output, config.name)


def read_history(uri: str) -> pd.DataFrame:
    """Read a history.csv: one row per epoch, validation columns empty if it was not validated."""
    return pd.read_csv(BytesIO(storage.read_bytes(uri)))


def save_hyperparameters(folder: str, parameters: Mapping[str, Any], *, metric: str) -> None:
    """Write a run's hyperparameters for TensorBoard's HPARAMS table.

    Args:
        folder: folder of the run.
        parameters: values by name; those that are no number, boolean or string are shown as text.
        metric: validation score to list beside them.
    """
    shown = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in parameters.items()
    }
    with _write_events(folder, name="hyperparameters") as writer:
        for summary in hparams(shown, {_tag(f"val_{metric}"): 0.0}):
            writer.file_writer.add_summary(summary)


def _tag(column: str) -> str:
    """Return the TensorBoard tag of a column of history.csv."""
    return column.replace("val_", "validation/")


@contextmanager
def _write_events(
    folder: str, *, name: str, purge_step: int | None = None
) -> Iterator[SummaryWriter]:
    """Write a new file of TensorBoard events, copied to the run's folder when the context ends.

    Every call writes a file of its own, because the writer's `flush` leaves out events that its
    thread has not picked up yet.
    """
    with tempfile.TemporaryDirectory() as local:
        with SummaryWriter(local, purge_step=purge_step, filename_suffix=f".{name}") as writer:
            yield writer
        for file in Path(local).iterdir():
            storage.write_bytes(storage.join(folder, EVENTS_FOLDER, file.name), file.read_bytes())


class Tracker:
    """Records each epoch's values as they arrive; only the first worker has one."""

    def __init__(self, config: TrainConfig, *, epoch: int) -> None:
        """Prepare to record, after `epoch` completed epochs."""
        self.status = "FINISHED"
        self._uri, self._epochs = run_folder(config), config.epochs
        self._latest: dict[str, float] = {"epoch": epoch}
        self._shown = show_training(Run(output=config.output, name=config.name), self._latest)
        self._mlflow = _MLflow(config) if config.mlflow is not None else None

    def __enter__(self) -> Self:
        self._shown.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._shown.__exit__(None, None, None)
        if self._mlflow is not None:
            self._mlflow.close(self.status if kind is None else "FAILED")

    def note(self, row: Mapping[str, float]) -> None:
        """Show an epoch that has been trained, before it is validated."""
        logger.info(
            "epoch %d of %d: loss %.4f, %.1f images/s",
            row["epoch"],
            self._epochs,
            row["train_loss"],
            row["images_per_second"],
        )
        self._latest.update(row)

    def write(self, history: Sequence[Mapping[str, float]], *, new: int) -> None:
        """Rewrite history.csv, and add its last `new` rows to TensorBoard and MLflow."""
        storage.write_bytes(
            storage.join(self._uri, HISTORY_FILE),
            pd.DataFrame(history).to_csv(index=False).encode(),
        )
        rows = history[-new:]
        self._latest.update(rows[-1])
        self._add_events(rows)
        if self._mlflow is not None:
            self._mlflow.write(rows)

    def _add_events(self, rows: Sequence[Mapping[str, float]]) -> None:
        first, last = int(rows[0]["epoch"]), int(rows[-1]["epoch"])
        try:
            with _write_events(self._uri, name=f"epoch-{last:06d}", purge_step=first) as writer:
                for row in rows:
                    for name, value in row.items():
                        if name != "epoch":
                            writer.add_scalar(_tag(name), value, int(row["epoch"]))
        except Exception as error:  # noqa: BLE001 (a diary must not stop the work)
            logger.warning(
                "TensorBoard lacks epochs %d to %d, which %s has: %s",
                first,
                last,
                HISTORY_FILE,
                storage.mask_credentials(str(error)),
            )


class _MLflow:
    """The MLflow run of a training run, found by its name after a restart.

    A thread sends the epochs. If the server is away, they wait until it takes them, and training
    goes on.
    """

    def __init__(self, config: TrainConfig) -> None:
        assert config.mlflow is not None, "only created if a tracking URI is given"
        self._config, self._run_id = config, ""
        self._client: Any = None
        self._waiting: list[Mapping[str, float]] = []
        self._orders: Queue[str] = Queue()
        # MLflow itself would try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def close(self, status: str) -> None:
        """End the run, and name the epochs that MLflow did not take."""
        self._orders.put(status)
        self._thread.join(_LAST_SECONDS)
        if self._waiting:
            missing = ", ".join(str(int(row["epoch"])) for row in self._waiting)
            logger.warning("MLflow lacks the epochs %s, which %s has", missing, HISTORY_FILE)

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        self._waiting += rows
        self._orders.put("")

    def _work(self) -> None:
        status = ""
        while not status:
            status = self._orders.get()
            try:
                self._send()
                if status:
                    self._client.set_terminated(self._run_id, status=status)
            except Exception as error:  # noqa: BLE001 (each of MLflow's stores has its own errors)
                logger.warning(
                    "MLflow takes no metrics now, so that %d epochs wait: %s",
                    len(self._waiting),
                    storage.mask_credentials(str(error)),
                )

    def _send(self) -> None:
        """Send the epochs that wait."""
        self._find_run()
        while self._waiting:
            row = self._waiting[0]
            for name, value in row.items():
                self._client.log_metric(self._run_id, name, value, step=int(row["epoch"]))
            self._waiting.pop(0)

    def _find_run(self) -> None:
        """Find or begin the run, once."""
        if self._run_id:
            return
        self._client = import_mlflow().MlflowClient(tracking_uri=self._config.mlflow)
        experiment = self._client.get_experiment_by_name("resunet_ray")
        number = (
            experiment.experiment_id
            if experiment
            else self._client.create_experiment("resunet_ray")
        )
        name = run_folder(self._config).replace("'", "")
        found = self._client.search_runs([number], filter_string=f"tags.mlflow.runName = '{name}'")
        run = found[0] if found else self._client.create_run(number, run_name=name)
        self._client.update_run(run.info.run_id, status="RUNNING")
        if not found:
            for key, value in asdict(self._config).items():
                self._client.log_param(run.info.run_id, key, str(value)[:500])
        self._run_id = run.info.run_id


def import_mlflow() -> Any:
    """Return the MLflow module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import mlflow
    except ImportError:
        raise ConfigError(
            "--mlflow needs the package mlflow-skinny: pip install 'resunet_ray[mlflow]'"
        ) from None
    return mlflow
