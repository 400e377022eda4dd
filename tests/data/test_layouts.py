"""Data sets are read as their publishers offer them, and any layout that patterns describe."""

import io
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile
from support import ROOT

from resunet_ray.command_line import read_config
from resunet_ray.config.flags import list_flags
from resunet_ray.config.layouts import PRESETS, parse_layout
from resunet_ray.config.prepare import PrepareConfig
from resunet_ray.data.check import CheckedImage, Reject, check_source
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.sources import list_sources
from resunet_ray.errors import ConfigError, InputError
from resunet_ray.storage import Cache

BOXES = {1: (2, 9, 3, 10), 2: (2, 9, 10, 16), 3: (14, 20, 20, 28)}
"""Nuclei as top, bottom, left and right. The first two touch."""
LABELS = np.zeros((24, 32), np.int32)
for number, (top, bottom, left, right) in BOXES.items():
    LABELS[top:bottom, left:right] = number
MASK = (LABELS > 0).astype(np.uint8)

Files = dict[str, bytes]


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*LABELS.shape, 3), dtype=np.uint8)


def grey(image: np.ndarray) -> np.ndarray:
    return image[..., 0].astype(np.uint16) * 257


def tiff(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array)
    return buffer.getvalue()


def mat(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"inst_map": labels.astype(np.float64), "inst_type": np.ones((3, 1))})
    return buffer.getvalue()


def image_scope(boxes: dict[int, tuple[int, int, int, int]]) -> bytes:
    regions = ""
    for top, bottom, left, right in boxes.values():
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
        regions += f'<Region NegativeROA="0"><Vertices>{points}</Vertices></Region>'
    return (
        f"<Annotations><Annotation><Regions>{regions}</Regions></Annotation></Annotations>".encode()
    )


def bbbc039(image: np.ndarray, name: str) -> Files:
    """Nuclei 1 and 3 are apart and share a value; the second channel tells nothing."""
    coloured = np.zeros((*LABELS.shape, 4), np.uint8)
    coloured[..., 2] = np.choose(LABELS, [0, 1, 2, 1])  # OpenCV's order is BGRA
    coloured[..., 1] = LABELS == 1
    coloured[..., 3] = 255
    done, mask = cv2.imencode(".png", coloured)
    assert done
    return {f"images/{name}.tif": tiff(grey(image)), f"masks/{name}.png": mask.tobytes()}


def nuinsseg(image: np.ndarray, name: str) -> Files:
    overlapping = np.where(LABELS == 2, 9, LABELS).astype(np.uint16)
    return {
        f"human bladder/tissue images/{name}.png": encode_png(image),
        f"human bladder/label masks modify/{name}.tif": tiff(LABELS.astype(np.uint16)),
        f"human bladder/label masks/{name}.tif": tiff(overlapping),
        f"human bladder/mask binary/{name}.png": encode_png(MASK),
    }


def bsst265(image: np.ndarray, name: str) -> Files:
    return {
        f"dataset/rawimages/{name}.tif": tiff(grey(image)),
        f"dataset/groundtruth/{name}.tif": tiff(LABELS.astype(np.uint16)),
        f"dataset/groundtruth_svgs/{name}.svg": b"<svg/>",
        f"dataset/singlecell_groundtruth/{name}.tif": tiff(MASK),
        "dataset/image_description.csv": b"Image_Name",
    }


def ctc(image: np.ndarray, name: str, truth: str = "GT") -> Files:
    markers = np.zeros(LABELS.shape, np.uint16)
    for number, (top, _, left, _) in BOXES.items():
        markers[top + 2, left + 2] = number + 40
    return {
        f"Fluo-N2DH-SIM+/{name[:2]}/t{name[-3:]}.tif": tiff(grey(image)),
        f"Fluo-N2DH-SIM+/{name[:2]}_{truth}/SEG/man_seg{name[-3:]}.tif": tiff(
            LABELS.astype(np.uint16)
        ),
        f"Fluo-N2DH-SIM+/{name[:2]}_GT/TRA/man_track{name[-3:]}.tif": tiff(markers),
    }


COPIES: dict[str, Callable[[np.ndarray, str], Files]] = {
    "bbbc038": lambda image, name: {
        f"stage1_train/{name}/images/{name}.png": encode_png(image),
        **{
            f"stage1_train/{name}/masks/{number}f.png": encode_png(
                np.equal(LABELS, number).astype(np.uint8) * np.uint8(255)
            )
            for number in BOXES
        },
    },
    "bbbc039": bbbc039,
    "cellbindb": lambda image, name: {
        f"CellBinDB/DAPI/{name}/{name}-img.tif": tiff(grey(image)),
        f"CellBinDB/DAPI/{name}/{name}-mask.tif": tiff(MASK),
        f"CellBinDB/DAPI/{name}/{name}-instancemask.tif": tiff(LABELS.astype(np.uint16)),
    },
    "consep": lambda image, name: {
        f"CoNSeP/Train/Images/{name}.png": encode_png(image),
        f"CoNSeP/Train/Labels/{name}.mat": mat(LABELS),
    },
    "ctc": ctc,
    "ctc-silver": lambda image, name: ctc(image, name, "ST"),
    "monuseg": lambda image, name: {
        f"MoNuSeg 2018 Training Data/Tissue Images/{name}.tif": tiff(image),
        f"MoNuSeg 2018 Training Data/Annotations/{name}.xml": image_scope(BOXES),
    },
    "monuseg-test": lambda image, name: {
        f"MoNuSegTestData/{name}.tif": tiff(image),
        f"MoNuSegTestData/{name}.xml": image_scope(BOXES),
    },
    "nuinsseg": nuinsseg,
    "s-bsst265": bsst265,
    "stardist": lambda image, name: {
        f"dsb2018/{'train' if name[0] == 'a' else 'test'}/images/{name}.tif": tiff(grey(image)),
        f"dsb2018/{'train' if name[0] == 'a' else 'test'}/masks/{name}.tif": tiff(
            LABELS.astype(np.uint16)
        ),
    },
    "tnbc": lambda image, name: {
        f"TNBC_NucleiSegmentation/Slide_{name[1:3]}/{name}.png": encode_png(image),
        f"TNBC_NucleiSegmentation/GT_{name[1:3]}/{name}.png": encode_png(MASK * np.uint8(255)),
    },
}
"""Files of one image, by preset: those that count, and others that must not be read."""
COLOUR = {"bbbc038", "consep", "monuseg", "monuseg-test", "nuinsseg", "tnbc"}


def write(files: Files, folder: Path, *, form: str) -> list[str]:
    """Write files as a folder, as a zip, or as a zip for each top folder; return the inputs."""
    if form == "folder":
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return [str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    uris = []
    for top in {name.split("/")[0] for name in files}:
        uris.append(str(folder / f"{top}.zip"))
        with zipfile.ZipFile(uris[-1], "w") as packed:
            for name, content in files.items():
                if name.startswith(f"{top}/"):
                    packed.writestr(name, content)
                    packed.writestr(f"__MACOSX/{name}", b"of the Finder")
    return uris


def read(uris: list[str], *layout: str, folder: Path) -> dict[str, CheckedImage | Reject]:
    cache = Cache(str(folder / "cache"), 2**30)
    return {
        source.image_id: check_source(source, max_pixels=2**20, known=Metadata(), cache=cache)
        for source in list_sources(uris, cache=cache, layout=parse_layout(layout))
    }


def assert_same_order(image: np.ndarray, counts: np.ndarray) -> None:
    """Counts become grey levels: more counts are never darker."""
    assert (image == image[..., :1]).all()
    levels = image[..., 0].ravel()[np.argsort(counts, axis=None, kind="stable")].astype(int)
    assert (np.diff(levels) >= 0).all()
    assert np.ptp(levels) > 50


def assert_labels(found: CheckedImage | Reject, expected: np.ndarray = LABELS) -> None:
    """Every nucleus has its own number, whichever, and its own pixels."""
    assert isinstance(found, CheckedImage), found
    assert found.labels is not None
    labels = decode_stored(found.labels)
    numbers = np.unique(np.stack([labels.ravel(), expected.ravel()]), axis=1)
    assert numbers.shape[1] == len(np.unique(expected)) == len(np.unique(labels))
    np.testing.assert_array_equal(labels > 0, expected > 0)


def test_every_preset_is_tested() -> None:
    assert COPIES.keys() == PRESETS.keys()
    (about,) = [flag.about for flag in list_flags(PrepareConfig) if flag.names == ("--layout",)]
    assert f"({', '.join(sorted(PRESETS))})" in about


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_reads_a_copy_of_its_data_set(preset: str, form: str, tmp_path: Path) -> None:
    """Pixels and nuclei are those that were drawn, and files of other kinds are left alone."""
    names = ["01-000", "02-000"] if preset.startswith("ctc") else ["a01_1", "b02_1"]
    images = {name: draw(seed) for seed, name in enumerate(names)}
    files: Files = {}
    for name, image in images.items():
        files |= COPIES[preset](image, name)
    found = read(write(files, tmp_path / "in", form=form), preset, folder=tmp_path)
    assert sorted(found) == names
    for name, image in images.items():
        checked = found[name]
        assert isinstance(checked, CheckedImage), checked
        if preset in COLOUR:
            np.testing.assert_array_equal(decode_stored(checked.image), image)
        else:
            assert_same_order(decode_stored(checked.image), image[..., 0])
        np.testing.assert_array_equal(decode_stored(checked.mask), MASK * 255)
        if preset == "tnbc":
            assert checked.labels is None
        else:
            assert_labels(checked)


def test_frames_without_all_their_labels_are_left_out_of_a_movie(tmp_path: Path) -> None:
    files = ctc(draw(0), "01-000") | ctc(draw(1), "01-001") | ctc(draw(2), "01-002")
    del files["Fluo-N2DH-SIM+/01_GT/SEG/man_seg001.tif"]
    two = np.where(LABELS == 3, 0, LABELS).astype(np.uint16)
    files["Fluo-N2DH-SIM+/01_GT/SEG/man_seg002.tif"] = tiff(two)
    found = read(write(files, tmp_path / "in", form="zip"), "ctc", folder=tmp_path)
    assert_labels(found["01-000"])
    reasons = {name: found[name].reason for name in ("01-001", "01-002")}  # type: ignore[union-attr]
    assert reasons == {"01-001": "not_labelled", "01-002": "partly_labelled"}
    assert "2 of 3 marked nuclei" in found["01-002"].message  # type: ignore[union-attr]


def test_patterns_read_any_layout_and_areas_become_nuclei(tmp_path: Path) -> None:
    """Connected areas of a binary mask are nuclei, so the two that touch are one."""
    files = {
        "p1/scan A.PNG": encode_png(draw(0)),
        "p1/scan A seg.png": encode_png(MASK),
        "p2/scan A.png": encode_png(draw(1)),
        "p2/scan A seg.png": encode_png(MASK),
        "p2/lonely.png": encode_png(draw(2)),
    }
    found = read(
        write(files, tmp_path / "in", form="folder"),
        "images={patient}/{id}.png",
        "areas={patient}/{id} seg.png",
        folder=tmp_path,
    )
    merged = np.where(LABELS == 2, 1, LABELS)
    assert_labels(found["p1-scan A"], merged)
    assert_labels(found["p2-scan A"], merged)
    assert {name: found[name].reason for name in found.keys() - {"p1-scan A", "p2-scan A"}} == {  # type: ignore[union-attr]
        "p1-scan A seg": "no_mask",
        "p2-scan A seg": "no_mask",
        "p2-lonely": "no_mask",
    }


def test_an_input_that_a_layout_does_not_fit_is_named(tmp_path: Path) -> None:
    uris = write({"x/images/a.tif": tiff(grey(draw(0)))}, tmp_path / "in", form="folder")
    with pytest.raises(InputError, match=r"in holds no file that a pattern of --layout matches"):
        read(uris, "tnbc", folder=tmp_path)
    with pytest.raises(
        InputError, match=r"pairs none of 1 images .*a\.tif.* names in braces are a"
    ):
        read(uris, "stardist", folder=tmp_path)


def test_the_layouts_that_the_guide_shows_are_understood() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text().replace("\\\n", "")
    lines = [
        shlex.split(line) for line in guide.splitlines() if "--layout" in line and ".venv" in line
    ]
    assert len(lines) == 2
    for line in lines:
        config = read_config(PrepareConfig, description="", arguments=line[2:])
        assert parse_layout(config.layout).patterns.keys() > {"images"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bbbc"], r"bbbc: expected bbbc038, bbbc039"),
        (["images={a}.png"], r"expected images=PATTERN and one of masks="),
        (["labels={a}.png"], r"expected images=PATTERN and one of masks="),
        (["images={a}.png", "label={a}.png"], r"cannot read label=\{a\}.png"),
        (["images={a}.png", "images={a}.tif", "masks={a}.png"], r"cannot read images="),
        (["images={a}.png", "masks={a}.png", "nuclei={a}.png"], r"one of masks="),
        (["images={a}.png", "masks={b}.png"], r"\{a\} in images= and \{b\} in masks="),
        (["images=*.png", "masks=*.png"], r"are none in images="),
        (["images={1}.png", "masks={1}.png"], r"begins with a digit"),
    ],
)
def test_a_layout_that_says_nothing_clear_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrepareConfig(input=("in",), output="out", layout=tuple(words))
