"""A second user can run every job where another user has left files and a running Ray."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, read_output, write_pyramid

from resunet_ray import storage
from resunet_ray.data.synthetic import generate_image

UID = 12345
NEEDED = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
"""Folders that a user must be able to read."""

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(
        os.geteuid() != 0
        or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
        reason="not root, or no mount namespaces here: a second user was not tried",
    ),
]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """The second user's home folder."""
    folder = Path(tempfile.mkdtemp(prefix="second-"))
    os.chown(folder, UID, UID)
    yield folder
    shutil.rmtree(folder)


def closed_folders() -> list[Path]:
    """Return the parents of `NEEDED` that other users may not enter."""
    parents = {parent for path in NEEDED for parent in path.resolve().parents}
    return sorted(parent for parent in parents if not parent.stat().st_mode & 0o001)


def run_as_second(home: Path, *command: str) -> dict[str, object]:
    """Run a Python program as the second user, and return its last line.

    A mount namespace makes the closed folders passable for this program alone.
    """
    opened = []
    for number, folder in enumerate(closed_folders()):
        inside = [path.resolve() for path in NEEDED if folder in path.resolve().parents]
        copies = {path: home / f"mount-{number}-{index}" for index, path in enumerate(inside)}
        opened += [f"mkdir -p {to}; mount --bind {path} {to}" for path, to in copies.items()]
        opened += [f"mount -t tmpfs -o mode=755 none {folder}"]
        opened += [f"mkdir -p {path}; mount --bind {to} {path}" for path, to in copies.items()]
    user = f"setpriv --reuid {UID} --regid {UID} --clear-groups env HOME={home} RAY_ADDRESS=local"
    script = "; ".join([*opened, f'cd {home}; exec {user} "$@"'])
    alone = ["unshare", "--mount", "sh", "-e", "-c", script, "sh", sys.executable, *command]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_every_job_runs_on_a_machine_that_another_user_has_used(
    home: Path, bundle_uri: str, generated: Path, s3: str, cluster: str
) -> None:
    """The first user's Ray and staging cache are in the default folders, which both users share."""
    slide, _ = generate_image(
        600, 700, modality="stained", num_nuclei=60, rng=np.random.default_rng(0)
    )
    write_pyramid(home / "slide.tiff", slide)
    storage.write_bytes(f"{s3}/shared/in/slide.tiff", (home / "slide.tiff").read_bytes())
    shutil.make_archive(str(home / "images"), "gztar", generated / "images")
    storage.write_bytes(f"{s3}/shared/in/images.tar.gz", (home / "images.tar.gz").read_bytes())
    storage.upload(Path(bundle_uri), f"{s3}/shared/bundle")
    segmenting = ["--bundle", f"{s3}/shared/bundle", "--input", f"{s3}/shared/in", "--actors", "0"]
    job = str(ROOT / "jobs" / "segment.py")
    command = [sys.executable, job, *segmenting, "--output", f"{s3}/shared/first"]
    subprocess.run(command, capture_output=True, check=True)
    assert storage.cache_folder(tempfile.gettempdir()).exists()

    assert run_as_second(home, str(Path(__file__).with_name("every_job.py")), str(home)) == {
        "prepared": 20,
        "scored": 4,
        "trials": {"completed": 1},
        "exported": 20,
        "segmented": {"ok": 20},
        "left": 0,
    }
    second = run_as_second(home, job, *segmenting, "--output", f"{s3}/shared/second")
    assert second["images"] == {"ok": 21}
    tables = [
        read_output(f"{s3}/shared/{name}", "images").sort_values("image_uri")
        for name in ("first", "second")
    ]
    rows = [table[["image_id", "num_nuclei"]].to_numpy() for table in tables]
    np.testing.assert_array_equal(*rows)
