"""Whatever a store does meanwhile, an operation ends as if nothing had happened, or blames it."""

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from benchmarks.faulty import RESET, Answer, faulty_store
from machine import MetadataService
from pyarrow import fs
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext

from resunet_ray import storage
from resunet_ray.errors import ResourceError
from resunet_ray.storage import clients, files
from resunet_ray.storage.reader import read_listed

TABLE = pa.table({"image": ["a", "b"], "num_nuclei": [1, 2]})


def list_folder(folder: str) -> Any:
    found = {file.path: file.size for file in storage.walk_files(f"{folder}/in")}
    assert found == dict(storage.list_files(f"{folder}/in"))
    assert storage.exists(f"{folder}/in/a")
    return found, storage.list_folders(folder)


def read(folder: str) -> Any:
    listed = storage.look_up(f"{folder}/in/a").fingerprint
    with storage.Reader(f"{folder}/in/a", fingerprint=listed) as reader:
        part = reader.read_at(4, 2)
    whole = read_listed(f"{folder}/in/a", fingerprint=listed, max_bytes=99)
    return part, whole, storage.read_bytes(f"{folder}/in/b")


def write(folder: str) -> Any:
    storage.write_bytes(f"{folder}/out/text", b"written")
    storage.upload(Path(__file__), f"{folder}/out/copy")
    return [storage.read_bytes(f"{folder}/out/{name}") for name in ("text", "copy")]


def commit(folder: str) -> Any:
    """As a run does: rows, and then no more notes of what was started."""
    storage.write_bytes(f"{folder}/attempts/0/1", b"")
    storage.write_table(f"{folder}/images/0.parquet", TABLE)
    storage.delete_folder(f"{folder}/attempts")
    rows = storage.read_table(f"{folder}/images/0.parquet", columns=["image"])
    return rows.to_pylist(), storage.exists(f"{folder}/attempts/0/1")


def hold_lease(folder: str) -> Any:
    with storage.hold_lease(f"{folder}/held", seconds=60) as lease:
        lease.renew()
        pickle.loads(pickle.dumps(lease)).check()
        return lease.uri.rsplit("/", 1)[1].isdigit()


def keep_checkpoint(folder: str) -> Any:
    """As Ray Train does, which makes its filesystem travel."""
    filesystem, path = pickle.loads(pickle.dumps(storage.open_portable(folder)))
    context = StorageContext(path, "run", filesystem)
    local = Checkpoint(Path(__file__).parents[1] / "sweep", fs.LocalFileSystem())
    kept = context.persist_current_checkpoint(local, "newest")
    with filesystem.open_output_stream(context.checkpoint_manager_snapshot_path) as file:
        file.write(b"{}")
    with kept.as_directory() as back:
        return {item.name: item.read_bytes() for item in Path(back).iterdir() if item.is_file()}


OPERATIONS: dict[str, Callable[[str], Any]] = {
    "list": list_folder,
    "read": read,
    "write": write,
    "commit": commit,
    "lease": hold_lease,
    "checkpoint": keep_checkpoint,
}


@dataclass
class Fault:
    """How a store answers some requests."""

    answer: Answer
    each: bool = True
    """Each method and location once; else the first request of all."""
    forever: bool = False
    met: Counter[tuple[str, str]] = field(default_factory=Counter)

    def decide(self, method: str, path: str) -> Answer:
        """Answer a request."""
        key = (method, path.partition("?")[0]) if self.each else ("", "")
        self.met[key] += 1
        return self.answer if self.forever or self.met[key] == 1 else None


FAULTS = {
    "unavailable": Fault((503, "SlowDown")),
    "bad gateway, no body": Fault(502),
    "throttled, no body": Fault(429),
    "timed out": Fault((400, "RequestTimeout")),
    "reset": Fault(RESET),
    "expired": Fault((400, "ExpiredToken"), each=False),
    "expired, no body": Fault(400, each=False),
    "denied, no body": Fault(403, each=False),
}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits."""
    monkeypatch.setattr(files, "time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def folder(s3: str, tmp_path: Path) -> str:
    for name in ("a", "b"):
        storage.write_bytes(f"{s3}/{tmp_path.name}/in/{name}", name.encode() * 9)
    return f"{s3}/{tmp_path.name}"


@pytest.fixture(scope="module")
def broken(s3: str) -> Iterator[Callable[[Fault], None]]:
    """Tell the store of this process how to answer; no client hides it by trying again."""
    told, behind = [Fault(None)], os.environ["AWS_ENDPOINT_URL"]
    with (
        pytest.MonkeyPatch.context() as patch,
        faulty_store(behind, lambda method, path: told[0].decide(method, path)) as seen,
    ):
        patch.setenv("AWS_ENDPOINT_URL", seen.endpoint)
        patch.setattr(clients, "_QUICK", 1)
        yield lambda fault: told.__setitem__(0, fault)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fault_that_stays_blames_the_store_and_one_that_passes_leaves_no_trace(
    folder: str,
    broken: Callable[[Fault], None],
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    fault: str,
) -> None:
    use, answer = OPERATIONS[operation], FAULTS[fault].answer
    monkeypatch.setattr(files, "_answered", set())
    broken(Fault(answer, forever=True))
    with pytest.raises(ResourceError):
        use(folder)
    broken(passing := Fault(answer, FAULTS[fault].each))
    found = use(folder)
    assert sum(passing.met.values()) > len(passing.met), "nothing was answered so"
    broken(Fault(None))
    assert found == use(folder)
    assert storage.read_bytes(f"{folder}/in/a") == b"a" * 9


def test_a_busy_metadata_service_delays_each_operation(
    folder: str, machine: MetadataService
) -> None:
    """It refuses seven of ten requests; where it refuses all, it is to blame."""
    for use in OPERATIONS.values():
        clients.forget()
        machine.decide = lambda _: 429
        with pytest.raises(ResourceError, match=r"metadata service at 127.0.0.1:\d+.* is busy"):
            use(folder)
        machine.decide = lambda number: 429 if (number * 7) % 10 < 7 else None
        found, fetched = use(folder), machine.count_fetches()
        assert found == use(folder)
        assert machine.count_fetches() == fetched
