"""README and docs match the code: tree, tables, flags and links are right, and commands run."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from support import RAYS_OWN, ROOT, SMALL, free_port

from resunet_ray.data.images import encode_png
from resunet_ray.data.synthetic import generate_image
from resunet_ray.schema import DATASET, IMAGES, INSTANCES, REGIONS, REJECTS, SCORES, TRIALS

DOCS = ROOT / "docs"
README, GUIDE, ARCHITECTURE = (
    (path).read_text() for path in (ROOT / "README.md", DOCS / "guide.md", DOCS / "architecture.md")
)


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of one language.

    All blocks are read in order, since a closing fence looks like the opening one of a block
    without a language.
    """
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def test_it_is_short_enough_to_read() -> None:
    assert len(README.splitlines()) <= 120
    assert max(map(len, README.splitlines())) <= 120


def test_links_lead_to_files() -> None:
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_pages_that_follow_from_the_code_are_up_to_date() -> None:
    generate = load_generator()
    assert (DOCS / "tables.md").read_text() == generate.describe_tables(), "run docs/generate.py"
    assert (DOCS / "jobs.md").read_text() == generate.describe_jobs(), "run docs/generate.py"
    assert (DOCS / "datasets.md").read_text() == generate.describe_datasets(), (
        "run docs/generate.py"
    )


def load_generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_tree_is_the_disk() -> None:
    """The tree has a line per folder and top module; a folder's modules are listed after its colon.

    They are in the order of imports.
    """
    (tree,) = [block for block in blocks(ARCHITECTURE, "") if block.startswith("resunet_ray/")]
    shown: dict[str, list[str]] = {}  # names of modules, by the folder or module whose line it is
    folders = ["resunet_ray/"]
    for indent, name, text in re.findall(
        r"^( *)(\S+) +(.*(?:\n {10,}.*)*)", tree, flags=re.MULTILINE
    ):
        folders[len(indent) // 2 :] = [name]
        shown["".join(folders)] = text.rpartition(":")[2].split() if ":" in text else []
    package = ROOT / "resunet_ray"
    expected: dict[str, list[str]] = {
        f"resunet_ray/{path.name}": [] for path in package.glob("[a-z]*.py")
    }
    for folder in [
        ROOT / "jobs",
        ROOT / "jobs" / "benchmarks",
        *(path.parent for path in package.rglob("__init__.py") if path.parent != package),
    ]:
        names = [path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")]
        expected[f"{folder.relative_to(ROOT)}/"] = sorted(names)
    others = {"docs/", "cluster/", "tests/"}
    assert {
        name: sorted(modules) for name, modules in shown.items() if name not in others
    } == expected
    assert others <= shown.keys()


def test_each_job_has_its_page_and_each_column_its_line() -> None:
    jobs, tables = (DOCS / "jobs.md").read_text(), (DOCS / "tables.md").read_text()
    for path in (ROOT / "jobs").glob("[a-z]*.py"):
        assert f"jobs/{path.name}" in jobs + GUIDE, f"{path.name} is on no page"
    for schema in (DATASET, REJECTS, SCORES, REGIONS, IMAGES, INSTANCES, TRIALS):
        for name in schema.names:
            assert f"| `{name}` |" in tables, f"column {name} is not in docs/tables.md"


def write_kaggle_zip(path: Path, *, masks: bool) -> None:
    """Ten generated images in BBBC038's layout."""
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(10):
            rng = np.random.default_rng(number)
            image, labels = generate_image(80, 96, modality="stained", num_nuclei=8, rng=rng)
            packed.writestr(
                f"{number:04d}/images/{number:04d}.png",
                encode_png(cv2.GaussianBlur(image, (0, 0), 0.5)),
            )
            for instance in range(1, labels.max() + 1 if masks else 1):
                mask = (labels == instance).astype(np.uint8) * np.uint8(255)
                packed.writestr(f"{number:04d}/masks/{instance:03d}.png", encode_png(mask))


@pytest.mark.campaign
def test_its_commands_on_real_data_run(tmp_path: Path, cluster: str) -> None:
    """As shown, with a small archive of the same layout and flags that make training short.

    Standard error is a file: it has no colours and none of Ray's own lines.
    """
    write_kaggle_zip(tmp_path / "stage1_train.zip", masks=True)
    write_kaggle_zip(tmp_path / "stage1_test.zip", masks=False)
    shown = [
        block.replace("\\\n", "") for text in (README, GUIDE) for block in blocks(text, "bash")
    ]
    lines = [
        shlex.split(line)
        for block in shown
        for line in block.splitlines()
        if line.startswith(".venv/bin/python")
    ]
    assert [Path(line[1]).stem for line in lines] == [
        "segment",
        "prepare",
        "train",
        "evaluate",
        "tune",
        "dashboard",
    ]
    short = {
        "train": [*SMALL, "--epochs", "1"],
        "tune": [*SMALL, "--epochs", "1", "--trials", "1", "--scheduler", "none"],
    }
    joined = {**os.environ, "RAY_ADDRESS": cluster, "FORCE_COLOR": "1"}
    for line in lines:
        job = Path(line[1]).stem
        command = [sys.executable, str(ROOT / line[1]), *line[2:], *short.get(job, [])]
        if job == "dashboard":
            end_once_served(command, folder=tmp_path)
            continue
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=joined,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not RAYS_OWN.search(done.stderr), done.stderr
        assert "\x1b" not in done.stdout + done.stderr
    assert (tmp_path / "runs/first/evaluation/report.html").exists()
    assert (tmp_path / "runs/first/train/bundle/bundle.json").exists()
    assert len(list((tmp_path / "segmented/images").glob("*/*.parquet"))) == 1


def end_once_served(command: list[str], *, folder: Path) -> None:
    """Run a server until it shows its address; on free ports, as the usual ones may be taken."""
    ports = ["--tensorboard-port", str(free_port()), "--optuna-port", str(free_port())]
    with subprocess.Popen(
        [*command, *ports], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        for shown in server.stderr:
            if "http://" in shown:
                server.terminate()
                break
        server.stderr.read()
    assert server.returncode == 0


@pytest.mark.parametrize("target", ["demo", "test", "campaign", "lint"])
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
