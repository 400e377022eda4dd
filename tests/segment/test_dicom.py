"""A folder of DICOM files is a slide of its folder's name, staged whole and segmented as others."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import CT, draw_dicom
from support import read_output, write_pyramid

from resunet_ray import storage
from resunet_ray.config import SegmentConfig
from resunet_ray.errors import ChangedError
from resunet_ray.report.segmentation import write_segmentation_report
from resunet_ray.segment.planning.listed import ListedImage
from resunet_ray.segment.planning.listing import Listing
from resunet_ray.segment.run import segment


def draw_slide(folder: Path, image: np.ndarray, *, series: str = "1.2.3") -> None:
    draw_dicom(folder / f"{series}-small.dcm", image[::2, ::2], series=series, microns=1, side=128)
    draw_dicom(folder / f"{series}-large.dcm", image, series=series, side=128)


def configure(folder: Path | str, bundle: str, output: Path) -> SegmentConfig:
    return SegmentConfig(
        bundle=bundle,
        input=(str(folder),),
        output=str(output),
        actors=0,
        max_error_fraction=1,
        cache=str(output),
    )


def images(config: SegmentConfig) -> pd.DataFrame:
    found = read_output(config.output, "images")
    found["name"] = found["image_uri"].str.rsplit("/", n=1).str[-1]
    return found.sort_values(["name", "member"], ignore_index=True)


def test_slides_of_every_kind_are_told_apart(
    picture: np.ndarray, dark_bundle: str, tmp_path: Path
) -> None:
    """The same nuclei are found as in the same picture as TIFF; what is no slide is one row."""
    image, folder = picture[:200, :260], tmp_path / "in"
    draw_slide(folder / "one.tif", image)
    draw_slide(folder / "two", image)
    draw_slide(folder / "two", image[:150], series="1.2.4")
    for number in range(3):
        draw_dicom(folder / "scan" / f"{number}.dcm", image[..., 0], kind=CT)
    write_pyramid(folder / "plain.tiff", image, mpp=0.5)
    config = configure(folder, dark_bundle, tmp_path / "out")
    result = segment(config)[-1]
    found = images(config)
    assert result.images == {"ok": 4, "failed": 1}, found["error_message"].tolist()
    assert found["name"].tolist() == ["one.tif", "plain.tiff", "scan", "two", "two"]
    one, plain, scan, first, second = found.to_dict("records")
    assert first["member"], second["member"] == ("s0", "s1")
    assert (one["format"], one["mpp"], one["mpp_source"]) == ("dicom", 0.5, "metadata")
    assert one["num_nuclei"] == plain["num_nuclei"] == first["num_nuclei"] > 10
    assert one["foreground_fraction"] == plain["foreground_fraction"]
    assert (second["height"], second["width"]) == (150, 260)
    assert one["source_bytes"] == sum(
        path.stat().st_size for path in (folder / "one.tif").iterdir()
    )
    assert f"{folder}/scan cannot be opened as a slide: its file 0.dcm" in scan["error_message"]
    assert segment(config)[-1].images == {}, "all are done"
    report = Path(write_segmentation_report(config.output, run_id=str(result.run_id))).read_text()
    assert report.count("its file 0.dcm") == 1
    assert "has changed" not in report


def listed(*inputs: Path | str) -> dict[str, ListedImage]:
    found = list(Listing([str(uri) for uri in inputs], storage.Cache("/nonexistent", 2**20)))
    assert len({image.image_id for image in found}) == len(found)
    return {image.uri: image for image in found}


def test_a_folder_is_one_image_wherever_it_is_listed_from(tmp_path: Path) -> None:
    slide = tmp_path / "in" / "a"
    for name in ("1.dcm", "2.DCM", "._3.dcm", "notes.txt", "below/4.dcm", "c.png"):
        (slide / name).parent.mkdir(parents=True, exist_ok=True)
        (slide / name).write_bytes(b"x")
    names = {str(slide), str(slide / "below"), str(slide / "c.png")}
    listing = Listing([str(tmp_path / "in")], storage.Cache("/nonexistent", 2**20))
    found = {image.uri: image for image in listing}
    assert found.keys() == names
    assert dict(listing.passed_over.kinds) == {"hidden": 1, "not an image": 1}
    (tmp_path / "list.csv").write_text(f"uri,mpp\nin/a/below,0.25\n{slide}/1.dcm,\n")
    for inputs, expected in (
        (slide, names),
        (tmp_path / "in" / "*", {str(slide)}),
        (tmp_path / "in" / "*" / "1.dcm", {str(slide)}),
        (tmp_path / "in" / "**" / "*.dcm", {str(slide), str(slide / "below")}),
        (slide / "1.dcm", {str(slide / "1.dcm")}),
    ):
        again = listed(inputs)
        assert again.keys() == expected
        for name in expected & names:
            assert again[name].image_id == found[name].image_id, inputs
    assert listed(tmp_path / "list.csv")[str(slide / "below")].mpp == 0.25


def test_a_slide_is_new_when_any_of_its_files_is(s3: str, tmp_path: Path) -> None:
    """And is the same, and staged whole, in a bucket, where a name sorts before a folder's."""
    cache = storage.Cache(str(tmp_path / "cache"), 2**20)
    for place in (str(tmp_path / "in"), f"{s3}/dicom"):
        for name in ("a/1.dcm", "a/b/9.dcm", "a/c.dcm", "a/d.png", "a-.dcm", "a.dcm"):
            storage.write_bytes(f"{place}/{name}", b"one")
        found = listed(place)
        assert found.keys() == {f"{place}/a", f"{place}/a/b", f"{place}/a/d.png", place}
        slide = found[f"{place}/a"]
        assert (slide.size, slide.format) == (6, "dicom")
        staging: dict[str, Any] = {"fingerprint": slide.source_fingerprint, "suffix": ".dcm"}
        with cache.stage(slide.uri, **staging) as path:
            staged = {file.name for file in Path(path).iterdir() if file.is_file()}
            assert staged - {"d.png"} == {"1.dcm", "c.dcm"}
            assert place.startswith("s3:") != ("d.png" in staged)
        with cache.stage(slide.uri, names=["c.dcm"], **staging) as path:
            staged = {file.name for file in Path(path).iterdir()}
            assert "c.dcm" in staged
            assert place.startswith("s3:") != ("1.dcm" in staged), "only what is named"
        storage.write_bytes(f"{place}/a/c.dcm", b"other")
        after = listed(place)
        assert {uri for uri in found if found[uri].image_id != after[uri].image_id} == {slide.uri}
        elsewhere = storage.Cache(str(tmp_path / "elsewhere"), 2**20)
        with (
            pytest.raises(ChangedError, match="a has changed since"),
            elsewhere.stage(slide.uri, **staging),
        ):
            pass


def test_in_archives_a_slide_is_refused_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name in ("a/1.dcm", "a/2.dcm", "b/1.dcm", "c.png"):
            packed.writestr(name, b"x")
    listing = Listing([str(tmp_path / "x.zip")], storage.Cache("/nonexistent", 2**20))
    found = {image.member: str(image.error) for image in listing}
    assert found.keys() == {"a/1.dcm", "b/1.dcm", "c.png"}
    assert "a/1.dcm is a slide inside an archive: unpack it" in found["a/1.dcm"]
    assert dict(listing.passed_over.kinds) == {"slide inside an archive": 2}
