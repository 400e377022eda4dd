"""The page that lists what is read names every suffix of the adapters, and their libraries."""

import ast
import importlib
import inspect
import re

from support import ROOT

from resunet_ray.data import annotations, archives, slides, stacks
from resunet_ray.data.raster import dicom, opening, pillow
from resunet_ray.segment.planning.manifest import is_manifest

ROWS = {
    row[1]: row[2:]
    for row in re.findall(
        r"^(\|) (.*?) \| (.*?) \| (.*?) \| (.*?) \|$",
        (ROOT / "docs" / "formats.md").read_text(),
        flags=re.MULTILINE,
    )
}
ADAPTERS = {
    **dict.fromkeys(pillow.FORMATS, "resunet_ray.data.raster.pillow"),
    "TIFF, OME-TIFF, ImageJ": "resunet_ray.data.raster.tiff",
    "slides": "resunet_ray.data.raster.openslide",
    "DICOM slides, a folder each": "resunet_ray.data.raster.openslide",
    "LIF": "resunet_ray.data.raster.lif",
    "ND2": "resunet_ray.data.raster.nd2",
    "OME-Zarr 0.4, 0.5": "resunet_ray.data.raster.ome_zarr",
    "archives": "resunet_ray.data.archives",
    "labels, only in `jobs/prepare.py`": "resunet_ray.data.annotations",
}
IMPORTED = {"Pillow": "PIL", "OpenSlide": "openslide"}


def suffixes(kind: str) -> set[str]:
    return set(re.findall(r"`(\.[\w.]+)`", ROWS[kind][0]))


def test_the_page_names_the_suffixes_of_every_adapter() -> None:
    expected = {kind: set(names) for kind, (names, _) in pillow.FORMATS.items()}
    expected |= {
        "TIFF, OME-TIFF, ImageJ": set(opening.TIFF_SUFFIXES),
        "slides": set(slides.SUFFIXES) - {dicom.SUFFIX, *slides._SCATTERED},
        "DICOM slides, a folder each": {dicom.SUFFIX},
        "slides in several files": set(slides._SCATTERED),
        "archives": set(archives.SUFFIXES),
        "other archives": set(archives.OTHER_SUFFIXES),
        "labels, only in `jobs/prepare.py`": set(annotations.SUFFIXES).difference(
            opening.SUFFIXES, stacks.STACK_SUFFIXES
        ),
    }
    assert {kind: suffixes(kind) for kind in expected} == expected
    planes = [suffixes(kind) for kind in ("LIF", "ND2", "OME-Zarr 0.4, 0.5")]
    assert set().union(*planes) == set(stacks.STACK_SUFFIXES)
    assert all(is_manifest(f"a{suffix}") for suffix in suffixes("manifests"))
    assert set(ROWS) - {"kind", "---"} == {
        *expected,
        *("LIF", "ND2", "OME-Zarr 0.4, 0.5", "manifests"),
    }


def test_the_page_names_the_library_that_each_adapter_uses() -> None:
    for kind, name in ADAPTERS.items():
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        used = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        used |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        used |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        for library in ROWS[kind][1].split(", "):
            wanted = IMPORTED.get(library, library)
            assert any(one.split(".")[0] == wanted for one in used), f"{kind}: {library}"
