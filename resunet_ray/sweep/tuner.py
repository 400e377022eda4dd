"""A sweep, from its checks to its bundle. The same command with the same output resumes it."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from resunet_ray import storage
from resunet_ray.cluster import connect, count_cores, require_dashboard
from resunet_ray.config import SweepConfig, TrainConfig
from resunet_ray.config.roles import MAY_CHANGE, list_fields
from resunet_ray.data.dataset import open_dataset
from resunet_ray.data.splits import TRAIN, VAL
from resunet_ray.errors import ResUNetRayError
from resunet_ray.sweep.running import RunningSweep, count_left
from resunet_ray.sweep.scheduling import NUMBER
from resunet_ray.sweep.space import Parameters, Space, apply, parse_space
from resunet_ray.sweep.study import Study, count_trials
from resunet_ray.sweep.trials import (
    TRIALS_FOLDER,
    Trial,
    list_trials,
    save_error,
    save_trial,
    trial_folder,
    trial_name,
)
from resunet_ray.sweep.winner import SweepResult, conclude
from resunet_ray.train.checkpoint import discard_damaged_snapshot
from resunet_ray.train.requirements import (
    check_init_and_mlflow,
    require_instances,
    wait_for_workers,
)
from resunet_ray.train.saved_settings import write_settings_once
from resunet_ray.train.trainer import prepare_if_folder, resolve, train

SWEEP_FILE = "sweep.json"

_DRIVER_BYTES = 700 * 2**20
"""Memory of the process of a trial that waits for its training run; measured: 0.53 GiB."""


def sweep(config: SweepConfig) -> SweepResult:
    """Run the trials that are not done, and write the winner's bundle.

    Raises:
        ConfigError: the space does not fit the training configuration, or the output holds
            another sweep.
        InputError: the data or the bundle to start from is missing or unusable.
        LeaseError: another process runs this sweep.
        ResourceError: the cluster has no room for this many trials at once.
        RunError: no trial trained to its last epoch, or trials were interrupted.
    """
    config = replace(config, training=resolve(config.training))
    training = config.training
    space = parse_space(config.space, training)
    with storage.hold_output(training, training.output) as lease:
        trials = _list_trials(config)
        left = count_left(trials, most=count_trials(config, space))
        at_once = replace(config, concurrent=max(1, min(config.concurrent, left)))
        if left > 0:
            check_init_and_mlflow(training)
            connect(dashboard=True)
            wait_for_workers(
                training,
                runs=at_once.concurrent,
                beside_gib=at_once.concurrent * _DRIVER_BYTES / 2**30,
            )
            if config.scheduler != "none":
                require_dashboard(
                    "only with it can Ray Train free the resources of a stopped trial "
                    "(or give --scheduler none)"
                )
        own = storage.join(training.output, "data")
        data = prepare_if_folder(training.data, own=own, lease=lease)
        dataset = open_dataset(data, needs=(TRAIN, VAL))
        require_instances(dataset, training)
        write_settings_once(
            storage.join(training.output, SWEEP_FILE),
            config,
            data_digest=dataset.digest,
            # The location of the data may change: its digest identifies it.
            free=[
                *list_fields(SweepConfig, MAY_CHANGE),
                *(f"training.{name}" for name in list_fields(TrainConfig, MAY_CHANGE)),
            ],
            advice="give another --output, or the same settings to resume it",
        )
        for trial in trials:
            if trial.status == "unfinished":
                save_trial(training.output, trial)
        trials = _run_trials(
            replace(at_once, training=replace(training, data=data)), space, trials, lease
        )
        lease.check()
        config = replace(config, training=replace(training, data=data))
        return conclude(config, space, trials, lease=lease)


def _threads(config: SweepConfig) -> int | None:
    """Return the CPU threads of a trial's worker, so that workers on one node share its cores."""
    if config.training.threads is not None:
        return config.training.threads
    nodes: int = sum(node["Alive"] for node in ray.nodes())
    workers = -(-config.concurrent * config.training.workers // nodes)
    return max(1, count_cores() // workers)


def _run_trials(
    config: SweepConfig, space: Space, trials: Sequence[Trial], lease: storage.Lease
) -> list[Trial]:
    """Run the trials that are not done; returns all trials."""
    with Study(config, space, trials) as study:
        state = RunningSweep(config, space, study, trials, lease)
        if state.left:
            _tune(config, state, lease)
            state.require_progress()
        return state.trials


def _list_trials(config: SweepConfig) -> list[Trial]:
    """Return the saved trials; with `retry_failed`, failed ones count as unfinished."""
    trials = list_trials(config.training.output)
    for number, trial in enumerate(trials):
        if config.retry_failed and trial.status == "failed":
            trials[number] = replace(trial, status="unfinished", reason=None, finished_at=None)
    return trials


class _Suggester(Searcher):  # type: ignore[misc]
    """Gives Tune the next trial. It keeps no state: that is in the sweep's own files."""

    def __init__(self, sweep: RunningSweep) -> None:
        super().__init__()
        self._sweep = sweep

    def suggest(self, _trial_id: str) -> Any:
        trial = self._sweep.start_next()
        return (
            self.FINISHED
            if trial is None
            else {NUMBER: trial.number, "parameters": trial.parameters}
        )

    def on_trial_complete(self, *_: object, **__: object) -> None:
        pass

    def save_to_dir(self, *_: object, **__: object) -> None:
        pass


class _Recorder(tune.Callback):  # type: ignore[misc]
    """Passes Tune's events on to the sweep."""

    def __init__(self, sweep: RunningSweep) -> None:
        self._sweep = sweep

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: object) -> None:
        if "epoch" in result:
            self._sweep.report(trial.config[NUMBER], result)

    def on_trial_complete(self, *, trial: Any, **_: object) -> None:
        self._sweep.end(trial.config[NUMBER])

    def on_trial_error(self, *, trial: Any, **_: object) -> None:
        lines = str(trial.get_error() or "its process died").strip().splitlines()
        self._sweep.end(trial.config[NUMBER], error=lines[-1])


def _tune(config: SweepConfig, state: RunningSweep, lease: storage.Lease) -> None:
    # Each training run writes its own curves. Tune's analysis would warn that its logs are missing.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    # A trial that failed early, or had only its bundle left to write, reports nothing.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    # Tune's own table would go to standard output, which belongs to the job's JSON line.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    trainable = tune.with_parameters(
        _run_trial, training=replace(config.training, threads=_threads(config)), lease=lease
    )
    filesystem, path = storage.open_portable(config.training.output)
    tuner = tune.Tuner(
        # The trial only waits for its training run, which takes the CPUs. Tune refuses a trial
        # that asks for nothing at all.
        tune.with_resources(trainable, {"cpu": 0, "memory": _DRIVER_BYTES}),
        tune_config=tune.TuneConfig(
            search_alg=_Suggester(state),
            scheduler=state.scheduler,
            num_samples=state.left,
            max_concurrent_trials=config.concurrent,
            time_budget_s=None if config.hours is None else config.hours * 3600,
            trial_name_creator=lambda trial: trial_name(trial.config[NUMBER]),
            trial_dirname_creator=lambda trial: trial_name(trial.config[NUMBER]),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[_Recorder(state)],
            failure_config=tune.FailureConfig(max_failures=config.training.max_failures),
            verbose=0,
        ),
    )
    with state.table.show():
        tuner.fit()


def _run_trial(given: dict[str, Any], *, training: TrainConfig, lease: storage.Lease) -> None:
    """Run one trial, in its own process, under the sweep's lease.

    An error that would only happen again is saved instead of raised, since Tune would retry it.
    """
    folder = trial_folder(training.output, given[NUMBER])
    lease.check()
    save_error(folder, None)
    connect()
    try:
        config = trial_config(training, number=given[NUMBER], parameters=given["parameters"])
        discard_damaged_snapshot(folder)
        train(config, callbacks=[TuneReportCallback()], lease=lease)
    except ResUNetRayError as error:
        lease.check()  # if it was lost, the trial is another sweep's
        save_error(folder, str(error))


def trial_config(training: TrainConfig, *, number: int, parameters: Parameters) -> TrainConfig:
    """Return the configuration of a trial's training run."""
    own = replace(
        training, output=storage.join(training.output, TRIALS_FOLDER), name=trial_name(number)
    )
    return apply(own, parameters)
