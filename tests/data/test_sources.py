"""Every known layout is found, in folders and in archives, and files without partner are named."""

import tarfile
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import pytest

from resunet_ray.data.names import PassedOver
from resunet_ray.data.sources import list_sources
from resunet_ray.errors import InputError
from resunet_ray.storage import Cache

CACHE = Cache(tempfile.gettempdir(), 2**30)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


PAIRS = (
    "images/a b.png",
    "images/ü.tif",
    "masks/a b.png",
    "masks/ü.png",
    "instances/ü.png",
    "images/.DS_Store",
    "manifest.csv",
)
BBBC038 = (
    "x1/images/x1.png",
    "x1/masks/n1.png",
    "x1/masks/n2.png",
    "x2/images/x2.png",
    "x2/masks/n1.png",
)


def test_pairs_match_by_name_whatever_their_suffix(tmp_path: Path) -> None:
    first, second = list_sources(cache=CACHE, uris=[str(touch(tmp_path, *PAIRS))])
    assert (first.image_id, second.image_id) == ("a b", "ü")
    assert first.image is not None
    assert first.image.read(CACHE) == b"images/a b.png"
    assert first.labels is None
    assert second.labels is not None
    assert second.labels.read(CACHE) == "instances/ü.png".encode()


def test_a_folder_per_image_collects_its_nuclei(tmp_path: Path) -> None:
    first, second = list_sources(
        cache=CACHE, uris=[str(touch(tmp_path / "stage1_train", *BBBC038))]
    )
    assert (first.image_id, len(first.masks), first.per_nucleus) == ("x1", 2, True)
    assert (second.image_id, len(second.masks)) == ("x2", 1)


@pytest.mark.parametrize("layout", [PAIRS, BBBC038])
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_archives_hold_what_the_folder_holds(
    tmp_path: Path, layout: tuple[str, ...], ending: str
) -> None:
    folder = touch(tmp_path / "in", *layout)
    archive = tmp_path / f"data.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for name in layout:
                packed.write(folder / name, name)
    else:
        with tarfile.open(archive, "w:gz" if ending.endswith("gz") else "w") as packed:
            packed.add(folder, ".")
    loose = list_sources(cache=CACHE, uris=[str(folder)])
    found = list_sources(cache=CACHE, uris=[str(archive)])
    assert [source.image_id for source in found] == [source.image_id for source in loose]
    for one, other in zip(loose, found, strict=True):
        assert [entry.read(CACHE) for entry in one.masks] == [
            entry.read(CACHE) for entry in other.masks
        ]
        assert one.image is not None
        assert other.image is not None
        assert one.image.read(CACHE) == other.image.read(CACHE)


def test_an_archive_member_s_name_never_becomes_a_path(tmp_path: Path) -> None:
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("../../images/evil.png", b"image")
        packed.writestr("../../masks/evil.png", b"mask")
    (source,) = list_sources(cache=CACHE, uris=[str(archive)])
    assert source.image is not None
    assert source.image.read(CACHE) == b"image"
    assert sorted(tmp_path.iterdir()) == [archive]


def test_files_without_partner_are_rejected_with_a_reason(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "a",
        "images/lonely.png",
        "masks/ghost.png",
        "images/two.png",
        "images/two.jpg",
        "masks/two.png",
    )
    other = touch(tmp_path / "b", "images/again.png", "masks/again.png")
    found = list_sources(cache=CACHE, uris=[str(folder), str(other), str(other)])
    assert {(source.image_id, source.reason) for source in found} == {
        ("lonely", "no_mask"), ("ghost", "no_image"), ("two", "ambiguous_name"),
        ("again", None), ("again", "duplicate_id"),
    }  # fmt: skip


def test_a_missing_input_or_one_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere does not exist"):
        list_sources(cache=CACHE, uris=[str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match=r"holds no images: expected images/NAME.png"):
        list_sources(cache=CACHE, uris=[str(touch(tmp_path, "a.png"))])
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match=r"broken.zip cannot be read as an archive"):
        list_sources(cache=CACHE, uris=[str(broken)])


def test_what_systems_leave_in_folders_is_passed_over_and_counted(tmp_path: Path) -> None:
    """In folders and in archives, whose names may have back-slashes and accents apart."""
    apart = unicodedata.normalize("NFD", "ü")
    names = [f"images/{apart}.PNG", "masks/ü.png", "images/Thumbs.db", "masks/desktop.ini"]
    names += ["images/._ü.png", "__MACOSX/images/ü.png", "images/.DS_Store", "train.ZIP"]
    names += ["images/x.zarr/0", "images/x.zarr/1", "preview/ü.png", "readme.txt"]
    folder = touch(tmp_path / "in", *names)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name in names:
            packed.writestr(name.replace("/", "\\"), name)
    for uri, place, zarr in (
        (folder, "a folder", "Zarr without metadata of OME"),
        (tmp_path / "x.zip", "an archive", "Zarr inside an archive"),
    ):
        passed_over = PassedOver()
        (source,) = list_sources([str(uri)], cache=CACHE, passed_over=passed_over)
        assert (source.image_id, source.reason, len(source.masks)) == ("ü", None, 1)
        assert dict(passed_over.kinds) == {
            "hidden": 3,
            "not an image": 3,
            f"archive inside {place}": 1,
            zarr: 1,
            "not in images, masks, instances, labels": 1,
        }


def test_files_of_planes_are_images_and_in_archives_are_passed_over(tmp_path: Path) -> None:
    """A Zarr folder is one image, named after the folder."""
    apart = unicodedata.normalize("NFD", "ü")
    names = [f"images/{apart}.zarr/{name}" for name in (".zattrs", "0/.zarray", "0/0/0")]
    names += ["images/b.LIF", "images/c.nd2", "images/.d.zarr/zarr.json"]
    names += [f"masks/{name}.png" for name in "übc"]
    folder = touch(tmp_path / "in", *names)
    passed_over = PassedOver()
    found = list_sources([str(folder)], cache=CACHE, passed_over=passed_over)
    places = {source.image_id: source.image.uri for source in found if source.image is not None}
    assert places == {
        "b": str(folder / "images" / "b.LIF"),
        "c": str(folder / "images" / "c.nd2"),
        "ü": str(folder / "images" / f"{apart}.zarr"),
    }
    assert all(source.reason is None for source in found)
    assert dict(passed_over.kinds) == {"hidden": 1}
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name in [*names, "images/e.png", "masks/e.png"]:
            packed.writestr(name, name)
    passed_over = PassedOver()
    found = list_sources([str(tmp_path / "x.zip")], cache=CACHE, passed_over=passed_over)
    assert {source.image_id: source.reason for source in found} == {
        "e": None,
        **dict.fromkeys("übc", "no_image"),
    }
    assert dict(passed_over.kinds) == {
        "hidden": 1,
        "Zarr inside an archive": 1,
        "LIF inside an archive": 1,
        "ND2 inside an archive": 1,
    }
