"""A second user of a machine, on which the first one has left all that a user leaves, runs every job."""

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
"""What a user must be able to read."""

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(
        os.geteuid() != 0
        or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
        reason="not root, or no namespace of mounts here: a second user was not tried",
    ),
]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """The second user's."""
    folder = Path(tempfile.mkdtemp(prefix="second-"))
    os.chown(folder, UID, UID)
    yield folder
    shutil.rmtree(folder)


def closed_folders() -> list[Path]:
    """Those on the way to what is needed that only their owner may pass."""
    parents = {parent for path in NEEDED for parent in path.resolve().parents}
    return sorted(parent for parent in parents if not parent.stat().st_mode & 0o001)


def run_as_second(home: Path, *command: str) -> dict[str, object]:
    """The last line of a program that the second user runs; folders that are closed are opened for it alone."""
    opened = []
    for number, folder in enumerate(closed_folders()):
        inside = [path.resolve() for path in NEEDED if folder in path.resolve().parents]
        copies = [home / f"mount-{number}-{index}" for index in range(len(inside))]
        opened += [
            f"mkdir -p {copy}; mount --bind {path} {copy}"
            for path, copy in zip(inside, copies, strict=True)
        ]
        opened += [f"mount -t tmpfs -o mode=755 none {folder}"]
        opened += [
            f"mkdir -p {path}; mount --bind {copy} {path}"
            for path, copy in zip(inside, copies, strict=True)
        ]
    user = f"setpriv --reuid {UID} --regid {UID} --clear-groups env HOME={home} RAY_ADDRESS=local"
    script = "; ".join([*opened, f'cd {home}; exec {user} "$@"'])
    alone = ["unshare", "--mount", "sh", "-e", "-c", script, "sh", sys.executable, *command]
    done = subprocess.run(alone, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_every_job_runs_beside_anothers_files(
    home: Path, bundle_uri: str, generated: Path, s3: str, cluster: str
) -> None:
    """The first user has a Ray, and a staging cache, in the folders that both have by default."""
    slide, _ = generate_image(
        600, 700, modality="stained", num_nuclei=60, rng=np.random.default_rng(0)
    )
    write_pyramid(home / "slide.tiff", slide)
    storage.write_bytes(f"{s3}/shared/in/slide.tiff", (home / "slide.tiff").read_bytes())
    shutil.make_archive(str(home / "images"), "gztar", generated / "images")
    storage.write_bytes(f"{s3}/shared/in/images.tar.gz", (home / "images.tar.gz").read_bytes())
    storage.upload(Path(bundle_uri), f"{s3}/shared/bundle")
    segmenting = ["--bundle", f"{s3}/shared/bundle", "--input", f"{s3}/shared/in", "--actors", "0"]
    command = [
        sys.executable,
        str(ROOT / "jobs" / "segment.py"),
        *segmenting,
        "--output",
        f"{s3}/shared/first",
    ]
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
    second = run_as_second(
        home, str(ROOT / "jobs" / "segment.py"), *segmenting, "--output", f"{s3}/shared/second"
    )
    assert second["images"] == {"ok": 21}
    tables = [
        read_output(f"{s3}/shared/{name}", "images").sort_values("image_uri")
        for name in ("first", "second")
    ]
    np.testing.assert_array_equal(
        *(table[["image_id", "num_nuclei"]].to_numpy() for table in tables)
    )
