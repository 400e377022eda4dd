"""The example programs of the documentation run, and their output is right."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import ROOT, read_output, read_picture

from resunet_ray.bundle import load_bundle
from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import decode_image, decode_stored
from resunet_ray.segment.run import segment

EXAMPLES = ROOT / "docs" / "examples"


def run(name: str, *arguments: str | Path) -> str:
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def output(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of jobs/segment.py for generated images, with the bundle `nuclei`."""
    folder = tmp_path_factory.mktemp("output")
    images = tuple(str(path) for path in sorted((generated / "images").iterdir())[:6])
    config = SegmentConfig(input=images, output=str(folder), actors=0, labels=True)
    (result,) = segment(config)
    assert result.images == {"ok": len(images)}
    return folder


def test_python_finds_the_same_nuclei_as_the_job(
    generated: Path, output: Path, tmp_path: Path
) -> None:
    regions = read_output(str(output), "regions")
    most = regions["num_instances"].idxmax()
    path = Path(regions["image_uri"][most])
    shown = run("one_image.py", path, tmp_path / "labels.png")
    found = load_bundle("nuclei").segment(decode_image(path.read_bytes(), name=path.name))
    expected = decode_stored(regions["labels"][most])
    assert len(found.nuclei) == regions["num_instances"][most] > 3
    assert len(shown.splitlines()) == len(found.nuclei) + 1
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_array_equal(found.mask, expected > 0)
    np.testing.assert_array_equal(read_picture(tmp_path / "labels.png"), expected)
    truth = read_picture(generated / "masks" / path.name) > 0
    assert 2 * (found.mask & truth).sum() / (found.mask.sum() + truth.sum()) > 0.7
    np.testing.assert_allclose(found.nuclei["area_px"], np.bincount(expected.ravel())[1:])


def test_tables_can_be_queried(output: Path) -> None:
    shown = run("query_nuclei.py", output)
    images = read_output(str(output), "images")
    assert f"{len(images)} │" in shown
    assert str(images["num_nuclei"].sum()) in shown
    assert "large_nuclei" in shown


def test_files_for_other_programs_are_written(output: Path) -> None:
    lines = run("open_elsewhere.py", output).splitlines()
    assert [line.split(",")[0] for line in lines] == ["QuPath"] * 6 + ["napari"] * 6
    for line in lines:
        (path,) = [word for word in line.split() if str(output) in word]
        assert Path(path).exists()
