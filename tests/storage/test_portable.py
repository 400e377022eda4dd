"""What other libraries store goes through this process's own client, and waits as it does."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from resunet_ray import storage
from resunet_ray.storage import clients

FILES = 40  # more than the threads in which pyarrow copies files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files, one of them larger than a part of an upload."""
    (tmp_path / "from" / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(FILES):
        (tmp_path / "from" / "below" / str(number)).write_bytes(rng.bytes(1000 + number))
    (tmp_path / "from" / "large").write_bytes(rng.bytes(11 * 2**20))
    return tmp_path / "from"


def read_folder(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def travel(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a location as another process has it, and the path on it."""
    return pickle.loads(pickle.dumps(storage.open_portable(uri)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["plain", "run#1 100%?ä"])
def test_a_folder_comes_back_as_it_went(s3: str, folder: Path, name: str) -> None:
    """Nothing of the environment travels with the filesystem."""
    filesystem, path = travel(f"{s3}/portable/{name}")
    assert clients.connect("lab").read_keys().secret_key.encode() not in pickle.dumps(filesystem)
    fs.copy_files(str(folder), path, destination_filesystem=filesystem)
    expected = read_folder(folder)
    found = dict(storage.list_files(f"{s3}/portable/{name}"))
    assert found == {key: len(content) for key, content in expected.items()}
    fs.copy_files(path, str(folder.parent / "to"), source_filesystem=filesystem)
    assert read_folder(folder.parent / "to") == expected
    filesystem.delete_dir(path)
    assert not storage.exists(f"{s3}/portable/{name}/large")


def test_an_upload_that_is_given_up_leaves_nothing(s3: str) -> None:
    filesystem, path = travel(f"{s3}/given-up")
    stream = filesystem.open_output_stream(path)
    stream.write(b"half")
    del stream
    assert not storage.exists(f"{s3}/given-up")
