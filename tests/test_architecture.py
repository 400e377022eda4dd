"""The structure is as designed: imports point down, imports have no effects, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

FILES = sorted((ROOT / "resunet_ray").rglob("*.py"))


def test_imports_point_down() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


def test_importing_everything_starts_nothing() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    ]
    code = (
        f"import importlib, ray\nfor name in {modules!r}: importlib.import_module(name)\n"
        "assert not ray.is_initialized()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_only_what_uses_them_imports_torch_and_zarr() -> None:
    """They take seconds, and 200 MiB, in each process that plans, reads, commits or reports."""
    code = "import sys, jobs.doctor, jobs.export, jobs.prepare, jobs.segment\n"
    code += "assert not {'torch', 'zarr'} & sys.modules.keys()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_its_idea_and_is_one_noun(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= 300, f"{path} has more than 300 lines"
