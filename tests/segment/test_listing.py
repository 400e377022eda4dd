"""Every kind of input becomes the same stream of images; what is wrong with one travels with it."""

import gzip
import io
import os
import tarfile
import tempfile
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from resunet_ray.config import SegmentConfig
from resunet_ray.data.archives import Entry
from resunet_ray.errors import InputError
from resunet_ray.segment.planning.listed import ListedImage
from resunet_ray.segment.planning.listing import Listing
from resunet_ray.storage import Cache

CACHE = Cache(tempfile.gettempdir(), 2**30)
NAMES = ["a.png", "deep/b c.TIF", "deep/er/ü.jpg"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name in [*NAMES, "notes.txt", ".hidden.png", "deep/._a.png", "__MACOSX/a.png"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def listed(*inputs: str | Path, **options: object) -> dict[str, ListedImage]:
    found = list(Listing([str(uri) for uri in inputs], CACHE, **options))  # type: ignore[arg-type]
    names = {
        image.uri if image.member is None else f"{image.uri}!{image.member}": image
        for image in found
    }
    assert len(names) == len(found)
    return names


def test_a_folder_gives_its_images_and_says_what_it_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert set(listed(folder)) == {str(folder / name) for name in NAMES}
    assert "passed over: 3 hidden, 1 not an image (.txt 1)" in caplog.text


def test_globs_and_single_files(folder: Path) -> None:
    assert set(listed(folder / "*.png")) == {str(folder / "a.png")}
    assert set(listed(folder / "**" / "?.jpg")) == {str(folder / NAMES[2])}
    assert set(listed(folder / "deep" / "**")) == {str(folder / NAMES[1]), str(folder / NAMES[2])}
    assert set(listed(folder / "notes.txt")) == {str(folder / "notes.txt")}, (
        "what was named itself is tried"
    )
    with pytest.raises(InputError, match="does not exist: expected a file, or a folder"):
        listed(folder / "none")


def test_the_output_is_no_input(folder: Path) -> None:
    assert set(listed(folder, exclude=str(folder / "deep"))) == {str(folder / "a.png")}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_members_of_archives_are_images_wherever_their_names_point(
    tmp_path: Path, suffix: str
) -> None:
    names = ["a.png", "../../etc/b.png", "/root/c.png", "deep/ü d.png"]
    path = tmp_path / f"x{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name in [*names, "notes.txt"]:
                packed.writestr(name, name)
    else:
        with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as packed_tar:
            for name in [*names, "notes.txt"]:
                member = tarfile.TarInfo(name)
                member.size = len(name.encode())
                packed_tar.addfile(member, io.BytesIO(name.encode()))
    found = listed(path)
    assert set(found) == {f"{path}!{name}" for name in names}
    assert not list(tmp_path.glob("**/*.png")), "nothing is unpacked"


def test_a_cut_tar_gives_what_it_still_holds_and_one_error(tmp_path: Path) -> None:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as packed:
        for number in range(10):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 2000
            packed.addfile(member, io.BytesIO(bytes(2000)))
    (tmp_path / "x.tar").write_bytes(whole.getvalue()[:9000])
    found = list(Listing([str(tmp_path)], CACHE))
    assert [image.member for image in found] == ["0.png", "1.png", "2.png", "3.png", None]
    assert [image.error is None for image in found] == [True, True, True, True, False]
    assert "x.tar cannot be read as an archive" in str(found[-1].error)


def test_a_manifest_is_looked_up_row_by_row(folder: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame(
        {
            "uri": [str(folder / "a.png"), str(folder / "gone.png")],
            "mpp": [0.25, None],
            "mask_uri": [None, "m.png"],
            "more": [1, 2],
        }
    )
    for name in ("m.csv", "m.parquet"):
        path = tmp_path / name
        rows.to_csv(path, index=False) if name.endswith("csv") else rows.to_parquet(path)
        found = listed(path)
        assert set(found) == set(rows["uri"])
        assert (found[rows["uri"][0]].mpp, found[rows["uri"][0]].mpp_source) == (0.25, "manifest")
        gone = found[rows["uri"][1]]
        assert gone.mpp is None
        assert "gone.png is listed in" in str(gone.error)
    pd.DataFrame({"path": ["a"]}).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match="bad.csv has columns path: expected `uri`"):
        listed(tmp_path / "bad.csv")


def test_masks_are_found_by_path(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "masks" / "deep").mkdir(parents=True)
    (tmp_path / "masks" / "deep" / "b c.png").write_bytes(b"")
    found = listed(folder, masks=str(tmp_path / "masks"))
    assert {name: image.mask_uri for name, image in found.items() if image.mask_uri} == {
        str(folder / NAMES[1]): str(tmp_path / "masks" / "deep" / "b c.png")
    }


def test_an_image_keeps_its_name_until_its_place_or_content_changes(folder: Path) -> None:
    before = {name: image.image_id for name, image in listed(folder).items()}
    assert before == {name: image.image_id for name, image in listed(folder).items()}
    os.utime(folder / "a.png", (1, 1))
    after = {name: image.image_id for name, image in listed(folder).items()}
    assert {name for name in before if before[name] != after[name]} == {str(folder / "a.png")}
    assert len(set(before.values())) == len(before)


def test_what_cannot_be_looked_at_is_an_error_of_its_own(folder: Path) -> None:
    (folder / "deep" / "nowhere.png").symlink_to(folder / "gone")
    (folder / "loop").symlink_to(folder)
    os.link(folder / "a.png", os.fsencode(folder) + b"/bad\xff.png")
    found = listed(folder)
    assert "No such file" in str(found[str(folder / "deep" / "nowhere.png")].error)
    assert "the name is not valid UTF-8" in str(found[f"{folder}/bad\\xff.png"].error)
    assert len(found) == len(NAMES) + 2


def test_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as packed:
        packed.writestr("a.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            packed.writestr("a.png", b"second")
    found = list(Listing([str(tmp_path / "twice.zip")], CACHE))
    assert len({image.image_id for image in found}) == 2
    entries = [Entry(image.uri, image.member, image.offset, image.size or 0) for image in found]
    assert [entry.read(CACHE) for entry in entries] == [b"first", b"second"]
    (tmp_path / "list.csv").write_text(f"uri,member\n{tmp_path / 'twice.zip'},a.png\n")
    (row,) = Listing([str(tmp_path / "list.csv")], CACHE)
    assert "it has 2 members a.png: expected one" in str(row.error)


def test_what_a_manifest_says_of_secrets_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "uri\ns3://key:hidden@bucket/a.png\ns3://bucket?secret_key=hidden&x=1/a.png\n"
    )
    for image in Listing([str(tmp_path / "list.csv")], CACHE):
        assert image.error is not None
        assert "hidden" not in image.uri + str(image.error)


def ids(*inputs: str | Path, **options: object) -> dict[str, bytes]:
    return {Path(name).name: found.image_id for name, found in listed(*inputs, **options).items()}


def changed(one: dict[str, bytes], other: dict[str, bytes]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_a_corrected_pixel_size_makes_its_image_new_and_no_other(
    folder: Path, tmp_path: Path
) -> None:
    def manifest(*sizes: str) -> dict[str, bytes]:
        rows = [f"{folder / name},{size}" for name, size in zip(NAMES, sizes, strict=True)]
        (tmp_path / "list.csv").write_text("\n".join(["uri,mpp", *rows]))
        return ids(tmp_path / "list.csv")

    def sidecar(size: str, *, name: str) -> dict[str, bytes]:
        (tmp_path / name).write_text(f"name,mpp\na.png,{size}\n")
        return ids(folder, mpp_csv=str(tmp_path / name))

    assert manifest("", "", "") == ids(folder)
    first = manifest("0.5", "0.5", "")
    assert changed(first, manifest("0.25", "0.5", "")) == {"a.png"}
    assert changed(first, manifest("0.5", "0.5", "0.5")) == {"ü.jpg"}
    assert manifest("0.50", "0.5", "") == first
    assert changed(ids(folder), sidecar("0.5", name="sizes.csv")) == {"a.png"}
    assert changed(sidecar("0.5", name="sizes.csv"), sidecar("0.25", name="sizes.csv")) == {"a.png"}
    assert sidecar("0.5", name="sizes.csv") == sidecar("0.5", name="moved.csv")
    assert ids(folder, mpp=0.5) == ids(folder), "a setting: it is no part of any name"


def test_a_slide_is_new_when_the_folder_of_its_pixels_is(tmp_path: Path) -> None:
    """Listed without its folder; then with it; then with a file replaced by another of its size."""
    slide, folder = tmp_path / "a.mrxs", tmp_path / "a"
    slide.write_bytes(b"\xff\xd8\xff")
    folder.mkdir()
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"uri\n{slide}\n")
    names: list[bytes] = []
    for content in (None, b"one", b"two"):
        if content is not None:
            (folder / "Data0000.dat").write_bytes(content)
            os.utime(folder / "Data0000.dat", (0, len(names)))
        (found,) = Listing([str(slide)], CACHE)
        assert listed(manifest)[str(slide)].image_id == found.image_id
        names.append(found.image_id)
    assert len(set(names)) == 3


def test_corrected_truth_makes_its_image_new_however_its_place_is_spelled(
    folder: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "masks"
    for name in NAMES:
        mask = (masks / name).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(b"truth")
    first = ids(folder, masks=str(masks))
    assert changed(first, ids(folder)) == {Path(name).name for name in NAMES}
    (tmp_path / "link").symlink_to(masks)
    assert (
        ids(folder, masks=str(tmp_path / "link"))
        == ids(folder, masks=f"{tmp_path}/./masks")
        == first
    )
    (tmp_path / "list.csv").write_text(f"uri,mask_uri\n{folder / 'a.png'},{masks / 'a.png'}\n")
    assert ids(tmp_path / "list.csv")["a.png"] == first["a.png"]
    (masks / "a.png").write_bytes(b"better truth")
    assert changed(first, ids(folder, masks=str(masks))) == {"a.png"}
    assert ids(tmp_path / "list.csv")["a.png"] != first["a.png"]
    plain = SegmentConfig(input=("in",), output="out")
    assert plain.digest == replace(plain, masks="masks", mpp_csv="sizes.csv").digest
    assert plain.digest != replace(plain, mpp=0.5).digest


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, kind: bytes
) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 2**33
    with gzip.open(tmp_path / "huge.tar.gz", "wb") as packed:
        packed.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**21))
    (found,) = Listing([str(tmp_path / "huge.tar.gz")], CACHE)
    assert "a header claims 8589934592 bytes" in str(found.error)


def test_a_member_or_a_file_of_more_bytes_than_an_image_has_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resunet_ray.data.archives.MAX_BYTES", 1000)
    (tmp_path / "large.png").write_bytes(bytes(1001))
    with zipfile.ZipFile(tmp_path / "large.zip", "w") as packed:
        packed.writestr("large.png", bytes(1001))
    with tarfile.open(tmp_path / "large.tar", "w") as tar:
        tar.add(tmp_path / "large.png", "large.png")
    for image in Listing([str(tmp_path)], CACHE):
        entry = Entry(image.uri, image.member, image.offset, image.size or 0)
        with pytest.raises(
            InputError, match=r"large.png has 1001 bytes: expected at most 1000 per image"
        ):
            entry.read(CACHE)
    with pytest.raises(InputError, match=r"large.png has more than 1000 bytes"):
        Entry(str(tmp_path / "large.png")).read(CACHE)


COMPOSED, APART = "Gewebe ü é.png", unicodedata.normalize("NFD", "Gewebe ü é.png")


def test_names_with_accents_apart_are_the_same_names(tmp_path: Path) -> None:
    """As macOS writes them; manifests and masks are often written elsewhere."""
    for folder, name in (("in", APART), ("masks", COMPOSED), ("APART é", COMPOSED)):
        place = tmp_path / (unicodedata.normalize("NFD", folder)) / name
        place.parent.mkdir()
        place.write_bytes(b"x")
    (found,) = listed(tmp_path / "in", masks=str(tmp_path / "masks")).values()
    assert found.mask_uri == str(tmp_path / "masks" / COMPOSED)
    (tmp_path / "sizes.csv").write_text(f'name,mpp\n{COMPOSED},"0,5"\n')
    (found,) = listed(tmp_path / "in", mpp_csv=str(tmp_path / "sizes.csv")).values()
    assert (found.uri, found.mpp) == (str(tmp_path / "in" / APART), 0.5)
    (tmp_path / "list.csv").write_text(f"uri\nin/{COMPOSED}\n")
    assert list(listed(tmp_path / "list.csv")) == [str(tmp_path / "in" / APART)]
    assert list(listed(tmp_path / "in" / "*ü*.png")) == [str(tmp_path / "in" / APART)]
    assert len(listed(tmp_path / "APART é")) == 1


def test_a_manifest_is_read_as_spreadsheets_write_it(folder: Path, tmp_path: Path) -> None:
    rows = "uri,mpp\nin/a.png,0.5\n,\nin/deep,\n"
    names = {str(folder / name) for name in NAMES}
    for name, content in (
        ("plain.csv", rows.encode()),
        ("UPPER.CSV", rows.encode()),
        ("mark.csv", rows.encode("utf-8-sig")),
        ("lines.csv", rows.replace("\n", "\r\n").encode()),
        ("comma.csv", rows.replace("0.5", '"0,5"').encode()),
    ):
        (tmp_path / name).write_bytes(content)
        found = listed(tmp_path / name)
        assert set(found) == names, name
        assert found[str(folder / "a.png")].mpp == 0.5
    for encoding, message in (("utf-16", "is a text in UTF-16"), ("latin-1", "another encoding")):
        (tmp_path / "x.csv").write_bytes("uri\nin/ü.png\n".encode(encoding))
        with pytest.raises(InputError, match=f"x.csv {message}|x.csv is a text in {message}"):
            listed(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(rows.replace(",", ";").replace("0.5", "0,5"))
    with pytest.raises(InputError, match="x.csv has columns uri;mpp: .*with commas between them"):
        listed(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("uri,mpp\n,0.5\n")
    ((_, found_empty),) = listed(tmp_path / "x.csv").items()
    assert "its uri is empty" in str(found_empty.error)


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    """Of folders and archives, where one that is nested or encrypted also becomes an error."""
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as inner:
        for name in ("a.png", "notes.txt", "__MACOSX/._a.png", "b.svs"):
            inner.writestr(name, name)
        for number in range(9):
            inner.writestr(f"c.zarr/0/{number}", b"chunk")
    root = tmp_path / "in"
    for name in (".DS_Store", "Thumbs.db", "x/._a.png", "x/desktop.ini", "y.7z", "s/Data0001.dat"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    for name in ("d.zarr/.zattrs", "d.zarr/0/0", "d.zarr/0/1", "e.zarr/0/0", "e.zarr/0/1"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"{}")
    with zipfile.ZipFile(root / "outer.ZIP", "w") as outer:
        outer.writestr("train.zip", zipped.getvalue())
        outer.writestr("train.tar.gz", b"x")
    (root / "inner.zip").write_bytes(zipped.getvalue())
    secret = bytearray(zipped.getvalue())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = secret.find(mark)
        while start >= 0:
            secret[start + place] |= 1
            start = secret.find(mark, start + 4)
    (root / "secret.zip").write_bytes(secret)
    listing = Listing([str(root)], CACHE)
    found = list(listing)
    assert dict(listing.passed_over.kinds) == {
        "hidden": 4,
        "not an image": 3,
        "archive of another kind": 1,
        "part of a slide": 1,
        "Zarr without metadata of OME": 1,
        "archive inside an archive": 2,
        "slide inside an archive": 2,
        "encrypted": 4,
    }
    errors = sorted(str(image.error) for image in found if image.error is not None)
    good = [image.member or image.uri.rsplit("/", 1)[-1] for image in found if not image.error]
    assert sorted(good) == ["a.png", "d.zarr"]
    assert [error.removeprefix(f"{root}/").split(":")[0] for error in errors] == [
        "inner.zip!b.svs is a slide inside an archive",
        "inner.zip!c.zarr is a slide inside an archive",
        "outer.ZIP!train.tar.gz is an archive inside an archive",
        "outer.ZIP!train.zip is an archive inside an archive",
        "secret.zip has 4 encrypted members",
    ]
