"""Whatever files, members and rows are called, each is a row, and only the output is written to."""

import csv
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import read_output

from resunet_ray.config import SegmentConfig
from resunet_ray.data.images import encode_png
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment.export.files import export_runs
from resunet_ray.segment.run import segment

NASTY = [
    "../",
    "../../",
    "/",
    "/etc/",
    "C:\\",
    "..\\",
    "con.",
    "aux",
    ".",
    "..",
    "-",
    "=1+1",
    "$\\x$",
    "\n",
    "\r\n",
    "\x7f",
    "%2e%2e/",
    "?",
    "#",
]
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300),
    st.lists(st.sampled_from(NASTY), max_size=8).map("".join),
    st.text("a", min_size=200, max_size=3000),
).map(lambda name: f"{name}.png")

IMAGE = encode_png(np.full((32, 32, 3), 90, np.uint8))


def list_files(folder: Path) -> set[str]:
    return {os.fsdecode(path) for path in folder.rglob("*")}


def write_archives(folder: Path, names: list[str]) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as packed:
        for name in names:
            packed.writestr(zipfile.ZipInfo(name[: 2**15]), IMAGE)
    with tarfile.open(folder / "b.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as packed:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(IMAGE)
            packed.addfile(member, io.BytesIO(IMAGE))
    with (folder / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["uri", "member"], *((str(folder / "a.zip"), f"not {name}") for name in names)]
        )


@settings(
    max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(NAMES, min_size=10, max_size=20, unique=True))
def test_a_name_is_only_a_name(
    names: list[str],
    dark_bundle: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path_factory.mktemp("names")
    inputs, output, other = (
        place / "deep" / "in",
        place / "deep" / "out",
        place / "deep" / "elsewhere",
    )
    for folder in (inputs, other):
        folder.mkdir(parents=True)
    write_archives(inputs, names)
    monkeypatch.chdir(other)
    before = list_files(place)
    given_to = (str(inputs / "a.zip"), str(inputs / "b.tar.gz"), str(inputs / "c.csv"))
    cache = str(place / "cache")
    (result,) = segment(
        SegmentConfig(bundle=dark_bundle, input=given_to, output=str(output), actors=0, cache=cache)
    )
    exported = export_runs(str(output), kinds=["png", "geojson", "ome-zarr", "ome-tiff"])
    write_segmentation_report(str(output), run_id=str(result.run_id))
    outside = {
        name for name in list_files(place) - before if not name.startswith((str(output), cache))
    }
    assert outside == set()
    hidden = [
        name
        for name in names
        if any(
            part.startswith(".") and part not in (".", "..")
            for part in name.replace("\\", "/").split("/")
        )
    ]
    seen = len(names) - len(hidden)
    rows = read_output(str(output), "images")
    assert rows["image_id"].is_unique
    assert result.images == {"ok": 2 * seen, "failed": len(names)}
    assert exported == 4 * 2 * seen
