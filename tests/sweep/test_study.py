"""The study matches the trials in storage, and interruptions do not change what it proposes."""

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from resunet_ray import storage
from resunet_ray.config import SweepConfig, TrainConfig
from resunet_ray.sweep.scheduling import build_scheduler
from resunet_ray.sweep.space import Parameters, parse_space
from resunet_ray.sweep.study import Study, count_trials, measure_importance
from resunet_ray.sweep.trials import (
    Trial,
    end_trial,
    list_trials,
    save_error,
    start_trial,
    tabulate,
    trial_folder,
)

SPACE = ("learning_rate=loguniform:1e-4,1e-2", "seed=choice:1,2,3")


def config(output: str, **fields: Any) -> SweepConfig:
    return SweepConfig(
        training=TrainConfig(data="data", output=output, epochs=12),
        space=SPACE,
        grace_epochs=2,
        **fields,
    )


def write_history(output: str, trial: Trial, scores: list[float]) -> None:
    """Write the history of a run validated every second epoch; the loss is 1 − the score."""
    rows: list[dict[str, float]] = []
    for number, score in enumerate(scores):
        blank = {"epoch": 2 * number + 1, "seconds": 1.5, "images_per_second": 8.0}
        values = dict.fromkeys(
            ("val_accuracy", "val_f1", "val_jaccard", "val_recall", "val_precision"), score
        )
        rows += [blank, {**blank, "epoch": 2 * number + 2, "val_loss": 1 - score, **values}]
    content = pd.DataFrame(rows).to_csv(index=False)
    storage.write_bytes(
        storage.join(trial_folder(output, trial.number), "history.csv"), content.encode()
    )


def start(output: str, count: int, **fields: Any) -> tuple[SweepConfig, list[Trial]]:
    """Return a sweep and its first `count` trials, just started."""
    chosen = config(output, **fields)
    with Study(chosen, parse_space(chosen.space, chosen.training), []) as study:
        return chosen, [
            start_trial(output, number=number, parameters=study.suggest(number))
            for number in range(count)
        ]


@pytest.mark.parametrize("search", ["optuna", "random"])
def test_an_interrupted_sweep_proposes_what_an_uninterrupted_one_does(
    search: str, tmp_path: Path
) -> None:
    def propose(output: str, restart: int) -> list[Parameters]:
        chosen, trials = start(output, restart, search=search)
        with Study(chosen, parse_space(SPACE, chosen.training), list_trials(output)) as study:
            return [trial.parameters for trial in trials] + [
                study.suggest(number) for number in range(restart, 6)
            ]

    whole = propose(str(tmp_path / "whole"), 0)
    assert propose(str(tmp_path / "interrupted"), 3) == whole
    assert len({str(parameters) for parameters in whole}) == 6


def test_a_grid_tries_each_point_once(tmp_path: Path) -> None:
    chosen = SweepConfig(
        training=TrainConfig(data="data", output=str(tmp_path)),
        space=("seed=choice:1,2", "learning_rate=choice:1e-3,1e-4"),
        search="grid",
    )
    space = parse_space(chosen.space, chosen.training)
    assert count_trials(chosen, space) == 4
    with Study(chosen, space, []) as study:
        first = [
            start_trial(str(tmp_path), number=number, parameters=study.suggest(number))
            for number in range(2)
        ]
    with Study(chosen, space, list_trials(str(tmp_path))) as study:
        rest = [study.suggest(number) for number in (2, 3)]
    assert len({str(point) for point in [*(trial.parameters for trial in first), *rest]}) == 4


def test_optuna_is_told_how_each_trial_ended(tmp_path: Path) -> None:
    output = str(tmp_path)
    chosen, trials = start(output, 4)
    for trial, scores in zip(trials, ([0.5, 0.8, 0.7], [0.2], [0.1], [0.4]), strict=True):
        write_history(output, trial, scores)
    end_trial(output, trials[0], status="completed")
    end_trial(output, trials[1], status="stopped", reason="after epoch 2, at 0.2000")
    end_trial(output, trials[2], status="failed", reason="no memory")
    with Study(chosen, parse_space(SPACE, chosen.training), list_trials(output)) as study:
        study.report(3, epoch=2, score=0.4)  # repeats an epoch after an interruption
        study.report(3, epoch=4, score=0.6)
        study.save()
    stored = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [trial.state.name for trial in stored.trials] == [
        "COMPLETE",
        "PRUNED",
        "FAIL",
        "RUNNING",
    ]
    assert [trial.params for trial in stored.trials] == [trial.parameters for trial in trials]
    assert stored.trials[0].value == 0.8
    assert stored.trials[0].intermediate_values == {2: 0.5, 4: 0.8, 6: 0.7}
    assert stored.trials[2].user_attrs["reason"] == "no memory"
    assert stored.trials[3].intermediate_values == {2: 0.4, 4: 0.6}


def test_the_table_matches_the_histories(tmp_path: Path) -> None:
    output = str(tmp_path)
    chosen, trials = start(output, 3)
    write_history(output, trials[0], [0.5, 0.8, 0.7])
    trials[0] = end_trial(output, trials[0], status="completed")
    write_history(output, trials[1], [0.6])
    table = tabulate(output, trials, training=chosen.training).to_pandas()
    assert table["score"].tolist()[:2] == [0.8, 0.6]
    assert table["score"].isna().tolist() == [False, False, True]
    assert (table["epoch"][0], table["epochs"][0], table["seconds"][0]) == (4, 6, 9.0)
    assert table["status"].tolist() == ["completed", "unfinished", "unfinished"]
    assert table["config.learning_rate"].tolist() == [
        trial.parameters["learning_rate"] for trial in trials
    ]


def test_the_field_that_decides_the_score_is_the_most_important(tmp_path: Path) -> None:
    output = str(tmp_path)
    chosen, trials = start(output, 12, search="random")
    for number, trial in enumerate(trials):
        write_history(output, trial, [0.5 + 40 * trial.parameters["learning_rate"]])
        trials[number] = end_trial(output, trial, status="completed")
    space = parse_space(SPACE, chosen.training)
    importance = measure_importance(chosen, space, trials)
    assert importance["learning_rate"] > importance["seed"]
    assert measure_importance(chosen, space, trials[:3]) == {}


class TuneTrial:
    """The attributes of a trial that Tune's schedulers use."""

    def __init__(self, number: int) -> None:
        self.config = {"number": number}
        self.trial_id = f"id-{number}"


def start_beside_good_trials(output: str, scheduler: str) -> tuple[SweepConfig, list[Trial]]:
    """Return a sweep of four trials completed with good scores, and a fifth just started."""
    chosen, trials = start(output, 5, scheduler=scheduler)
    for number in range(4):
        write_history(output, trials[number], [0.8, 0.85, 0.9])
        trials[number] = end_trial(output, trials[number], status="completed")
    return chosen, trials


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_scheduler_compares_with_trials_from_before_the_interruption(
    scheduler: str, tmp_path: Path
) -> None:
    chosen, trials = start_beside_good_trials(str(tmp_path), scheduler)
    remembering, forgetful = (build_scheduler(chosen, known) for known in (trials, []))
    poor, decisions = TuneTrial(4), []
    for built in (remembering, forgetful):
        built.on_trial_add(None, poor)
        decisions.append(
            built.on_trial_result(None, poor, {"epoch": 2, "f1": 0.3, "training_iteration": 1})
        )
        # A trial that failed before it reported anything.
        built.on_trial_complete(None, TuneTrial(9), {"done": True})
    assert decisions == ["STOP", "CONTINUE"]
    assert remembering.stopped == {4: "after epoch 2, at 0.3000"}


@pytest.mark.parametrize("scheduler", ["asha", "median", "none"])
def test_a_trial_that_resumes_is_judged_by_its_new_results(scheduler: str, tmp_path: Path) -> None:
    output = str(tmp_path)
    chosen, trials = start(output, 4, scheduler=scheduler)
    for number, trial in enumerate(trials):
        write_history(output, trial, [0.8, 0.85] if number < 3 else [0.3])
    for number in range(3):
        trials[number] = end_trial(output, trials[number], status="completed")
    built = build_scheduler(chosen, trials)
    again = TuneTrial(3)
    built.on_trial_add(None, again)
    assert (
        built.on_trial_result(None, again, {"epoch": 4, "f1": 0.95, "training_iteration": 1})
        == "CONTINUE"
    )
    assert (
        built.on_trial_result(None, again, {"epoch": 12, "f1": 0.95, "training_iteration": 2})
        == "CONTINUE"
    )
    assert built.stopped == {}


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_trial_that_trained_its_last_epoch_is_not_stopped_before_it_writes_its_bundle(
    scheduler: str, tmp_path: Path
) -> None:
    chosen, trials = start_beside_good_trials(str(tmp_path), scheduler)
    built = build_scheduler(chosen, trials)
    built.on_trial_add(None, TuneTrial(4))
    assert (
        built.on_trial_result(None, TuneTrial(4), {"epoch": 12, "f1": 0.3, "training_iteration": 1})
        == "CONTINUE"
    )
    assert built.stopped == {}


def test_a_retried_trial_has_no_error_left(tmp_path: Path) -> None:
    save_error(str(tmp_path), "no memory")
    save_error(str(tmp_path), None)
    save_error(str(tmp_path), None)
    assert list(tmp_path.iterdir()) == []
