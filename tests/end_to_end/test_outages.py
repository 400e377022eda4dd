"""Each job, while its store refuses each kind of request once, gives what it gives undisturbed."""

import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarks.faulty import RESET, Answer, faulty_store
from machine import MetadataService
from support import SMALL, call_job, read_output, run_job

from resunet_ray import storage
from resunet_ray.bundle_info import read_bundle_info
from resunet_ray.sweep.trials import list_trials

pytestmark = pytest.mark.campaign

FAULTS: tuple[Answer, ...] = ((503, "SlowDown"), RESET, 500, 429, 502)


class Refusals:
    """Answers one request of each kind with a fault, in turn."""

    def __init__(self) -> None:
        self.kinds: dict[tuple[str, str], Answer] = {}
        self._faults = itertools.cycle(FAULTS)

    def decide(self, method: str, path: str) -> Answer:
        """Answer a request. Locations that differ in numbers are of one kind."""
        kind = (method, re.sub(r"[0-9a-f-]*\d[0-9a-f-]*", "0", path.partition("?")[0]))
        if kind in self.kinds:
            return None
        self.kinds[kind] = next(self._faults)
        return self.kinds[kind]

    def met(self, method: str, part: str) -> bool:
        """Whether a request of such a kind was refused."""
        return any(verb == method and part in path for verb, path in self.kinds)


@pytest.fixture
def refusals(machine: MetadataService, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusals]:
    """Jobs that this test starts meet them, on a machine whose role is all they have."""
    told = Refusals()
    with faulty_store(os.environ["AWS_ENDPOINT_URL"], told.decide) as seen:
        monkeypatch.setenv("BROKEN", seen.endpoint)
        yield told


def run_disturbed(name: str, *arguments: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", os.environ["BROKEN"])
        code, line, shown = run_job(name, *arguments)
    assert code == 0, shown
    return line


def run_undisturbed(name: str, *arguments: str) -> dict[str, Any]:
    code, line, shown = call_job(name, *arguments)
    assert code == 0, shown
    return line


@pytest.fixture(scope="module")
def raw(generated: Path, s3: str) -> str:
    storage.upload(generated, f"{s3}/outages/raw")
    return f"{s3}/outages/raw"


@pytest.fixture(scope="module")
def data(raw: str, s3: str, cluster: str) -> str:
    run_undisturbed("prepare", "--input", raw, "--output", f"{s3}/outages/data")
    return f"{s3}/outages/data"


def test_prepare(refusals: Refusals, machine: MetadataService, raw: str, data: str) -> None:
    run_disturbed("prepare", "--input", raw, "--output", f"{data}-disturbed")
    digests = [
        json.loads(storage.read_bytes(f"{uri}/dataset.json"))["digest"]
        for uri in (data, f"{data}-disturbed")
    ]
    assert digests[0] == digests[1]
    assert refusals.met("GET", "/raw/")
    assert refusals.met("PUT", "/data-disturbed/leases/")
    assert 1 <= max(machine.fetches.values()) <= 2


def test_training(refusals: Refusals, machine: MetadataService, data: str, s3: str) -> None:
    flags = [*SMALL, "--data", data, "--epochs", "2", "--validation-interval", "1"]
    flags += ["--warmup-epochs", "0", "--learning-rate", "1e-2"]
    whole = run_undisturbed("train", *flags, "--output", f"{s3}/outages/whole")
    machine.fetches.clear()
    broken = run_disturbed("train", *flags, "--output", f"{s3}/outages/broken")
    infos = [read_bundle_info(line["bundle"])[0] for line in (whole, broken)]
    assert infos[0].sha256 == infos[1].sha256
    assert infos[0].scores == infos[1].scores
    assert broken["epochs"] == 2
    for name in ("leases/", "network.safetensors", "checkpoint_manager_snapshot.json", "history"):
        assert refusals.met("PUT", name), name
    assert refusals.met("GET", "network.safetensors")
    assert 1 <= max(machine.fetches.values()) <= 2


def test_a_sweep(refusals: Refusals, machine: MetadataService, data: str, s3: str) -> None:
    flags = [*SMALL, "--data", data, "--epochs", "1", "--validation-interval", "1"]
    flags += ["--warmup-epochs", "0", "--trials", "1", "--concurrent", "1", "--scheduler", "none"]
    flags += ["--search", "grid", "--space", "learning_rate=choice:1e-2"]
    whole = run_undisturbed("tune", *flags, "--output", f"{s3}/outages/sweep")
    machine.fetches.clear()
    broken = run_disturbed("tune", *flags, "--output", f"{s3}/outages/broken-sweep")
    assert whole["trials"] == broken["trials"] == {"completed": 1}
    assert [trial.number for trial in list_trials(f"{s3}/outages/broken-sweep")] == [0]
    assert whole["best"] == broken["best"]
    for name in ("leases/", "trial.json", "network.safetensors", "/tune/"):
        assert refusals.met("PUT", name), name
    assert 1 <= max(machine.fetches.values()) <= 2


def test_segmenting(
    refusals: Refusals, machine: MetadataService, bundle_uri: str, raw: str, s3: str
) -> None:
    flags = ["--bundle", bundle_uri, "--input", f"{raw}/images", "--precision", "fp32"]
    outputs = [f"{s3}/outages/rows", f"{s3}/outages/broken-rows"]
    run_undisturbed("segment", *flags, "--actors", "0", "--output", outputs[0])
    machine.fetches.clear()
    line = run_disturbed("segment", *flags, "--actors", "1", "--output", outputs[1])
    assert line["images"] == {"ok": 20}
    columns = ["image_uri", "mask", "num_instances", "confidence_sum", "status"]
    tables = [
        read_output(output, "regions", columns=columns).sort_values("image_uri", ignore_index=True)
        for output in outputs
    ]
    pd.testing.assert_frame_equal(*tables)
    assert read_output(outputs[1], "images")["image_id"].nunique() == 20
    for method, name in [
        ("GET", "/raw/images/"),
        ("PUT", "/leases/"),
        ("PUT", "/broken-rows/images/"),
    ]:
        assert refusals.met(method, name), name
    assert 1 <= max(machine.fetches.values()) <= 2
