"""Shards hold what the input held, every reject is named, and an unfinished data set is refused."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
from support import read_picture

from resunet_ray.config import PrepareConfig
from resunet_ray.data.check import CheckedImage, Reject, check_source
from resunet_ray.data.dataset import open_dataset, plan_once
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.data.labelled import read_images
from resunet_ray.data.labels import encode_labels
from resunet_ray.data.metadata import Metadata
from resunet_ray.data.prepare import prepare
from resunet_ray.data.sources import Source, list_sources
from resunet_ray.data.splits import split_as_baseline
from resunet_ray.errors import ConfigError, InputError
from resunet_ray.schema import DATASET
from resunet_ray.storage import Cache


def read_all(uri: str) -> pd.DataFrame:
    return pd.concat(
        [pd.read_parquet(path) for path in sorted(Path(uri).glob("*-*.parquet"))], ignore_index=True
    )


def test_shards_hold_every_image_once_with_its_own_pixels(
    dataset_uri: str, generated: Path
) -> None:
    rows = read_all(dataset_uri)
    names = sorted(path.stem for path in (generated / "images").iterdir())
    assert sorted(rows["image_id"]) == names
    assert dict(zip(rows["image_id"], rows["split"], strict=True)) == split_as_baseline(names)
    for row in rows.to_dict("records"):
        image = read_picture(generated / "images" / f"{row['image_id']}.png")
        np.testing.assert_array_equal(decode_stored(row["image"]), image[..., ::-1])
        labels = read_picture(generated / "instances" / f"{row['image_id']}.png")
        np.testing.assert_array_equal(decode_stored(row["labels"]), labels)
        np.testing.assert_array_equal(decode_stored(row["mask"]), np.where(labels > 0, 255, 0))
        assert (row["height"], row["width"], row["mpp"]) == (96, 112, 0.5)
        assert row["source_uri"].endswith(f"images/{row['image_id']}.png")


def test_shards_have_the_schema_and_the_row_groups_of_dataset_json(dataset_uri: str) -> None:
    content = json.loads((Path(dataset_uri) / "dataset.json").read_text())
    assert content["splits"] == {"test": 4, "train": 12, "val": 4}
    assert content["mpp"] == 0.5
    for name, groups in content["shards"].items():
        file = pq.ParquetFile(Path(dataset_uri) / name)
        assert file.schema_arrow.equals(DATASET)
        assert file.schema_arrow.metadata[b"schema_version"] == b"1"
        assert [
            file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)
        ] == groups


def test_the_layout_of_the_source_does_not_matter(
    generated: Path, dataset_uri: str, tmp_path: Path, cluster: str
) -> None:
    """A zip with a mask file per nucleus gives the same data as a folder of pairs."""
    archive = tmp_path / "stage1_train.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((generated / "images").iterdir()):
            packed.write(path, f"{path.stem}/images/{path.name}")
            labels = read_picture(generated / "instances" / path.name)
            for number in range(1, labels.max() + 1):
                mask = encode_png((labels == number).astype(np.uint8) * np.uint8(255))
                packed.writestr(f"{path.stem}/masks/{number:03d}.png", mask)
    prepare(PrepareConfig(input=(str(archive),), output=str(tmp_path / "out")))
    first, other = read_all(dataset_uri), read_all(str(tmp_path / "out"))
    merged = first.merge(other, on=["image_id", "split"], validate="1:1")
    assert len(merged) == len(first)
    for row in merged.to_dict("records"):
        for column in ("image", "mask", "labels"):
            np.testing.assert_array_equal(
                decode_stored(row[f"{column}_x"]), decode_stored(row[f"{column}_y"])
            )


@pytest.fixture
def damaged(generated: Path, tmp_path: Path) -> Path:
    """Return the generated pairs with one image added or damaged for each reason to reject it."""
    folder = tmp_path / "damaged"
    shutil.copytree(generated, folder)
    names = sorted(path.name for path in (folder / "images").iterdir())
    (folder / "images" / names[0]).write_bytes((folder / "images" / names[0]).read_bytes()[:500])
    cv2.imwrite(str(folder / "masks" / names[1]), np.zeros((10, 12), np.uint8))
    cv2.imwrite(
        str(folder / "masks" / names[2]), np.arange(96 * 112, dtype=np.uint8).reshape(96, 112)
    )
    (folder / "masks" / names[3]).write_bytes(b"")
    labels = read_picture(folder / "instances" / names[4])
    cv2.imwrite(
        str(folder / "instances" / names[4]), np.where(labels == 1, 0, labels).astype(np.uint16)
    )
    cv2.imwrite(str(folder / "images" / "copy.bmp"), read_picture(folder / "images" / names[9]))
    shutil.copy(folder / "masks" / names[9], folder / "masks" / "copy.png")
    shutil.copy(folder / "images" / names[9], folder / "images" / "alone.png")
    return folder


def test_every_bad_image_is_named_with_its_reason_and_too_many_are_refused(
    damaged: Path, tmp_path: Path, cluster: str
) -> None:
    output = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"7 of 22 images are rejected .* --max-reject-fraction is 0\.0"
    ):
        prepare(PrepareConfig(input=(str(damaged),), output=str(output)))
    assert not (output / "dataset.json").exists()
    with pytest.raises(InputError, match="holds no dataset.json"):
        open_dataset(str(output))

    done = prepare(
        PrepareConfig(input=(str(damaged),), output=str(output), max_reject_fraction=0.4)
    )
    assert (done.images, done.rejected, sum(done.splits.values())) == (15, 7, 15)
    rejects = pd.read_parquet(output / "rejects.parquet")
    name = "synthetic-0000{}".format
    assert dict(zip(rejects["image_id"], rejects["reason"], strict=True)) == {
        name(0): "unreadable", name(1): "size_differs", name(2): "not_a_mask",
        name(3): "unreadable_mask", name(4): "labels_differ", name(9): "duplicate",
        "alone": "no_mask",
    }  # fmt: skip
    message = rejects.set_index("image_id")["message"]
    assert "10 x 12: expected 96 x 112" in message[name(1)]
    assert message[name(9)].endswith("its pixels equal those of copy")
    folders = [path.name for path in output.iterdir() if path.is_dir()]
    assert folders == ["leases"], "staging is deleted"


@pytest.mark.parametrize("swapped", [False, True])
def test_masks_with_background_and_nuclei_swapped_are_told_from_all_of_them(
    swapped: bool, tmp_path: Path, cluster: str
) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "in"
    for number in range(5):
        mask = np.zeros((40, 60), np.uint8)
        mask[10:20, 5 : 30 + number] = 255
        mask = 255 - mask if swapped and number else mask
        for kind, array in (("images", rng.integers(0, 255, (40, 60), np.uint8)), ("masks", mask)):
            path = folder / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(array))
    done = prepare(PrepareConfig(input=(str(folder),), output=str(tmp_path / "out")))
    assert (done.images, done.rejected, len(done.warnings)) == (5, 0, int(swapped))
    assert not swapped or "nuclei cover more than 88%: are 0" in done.warnings[0]


def test_frames_that_a_layout_leaves_out_are_counted_and_do_not_fail_the_job(
    generated: Path, tmp_path: Path, cluster: str
) -> None:
    """Of 10 frames, one has no labels, and in another one nucleus is marked but has none."""
    movie = tmp_path / "Fluo-N2DH-SIM+"
    for number, image in enumerate(sorted((generated / "images").iterdir())[:10]):
        labels = read_picture(generated / "instances" / image.name)
        seen = np.where(labels == 1, 0, labels).astype(np.uint16) if number == 3 else labels
        for name, array in (
            (f"01/t{number:03d}.tif", read_picture(image)),
            (f"01_GT/TRA/man_track{number:03d}.tif", labels),
            (f"01_GT/SEG/man_seg{number:03d}.tif", seen),
        ):
            (movie / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(movie / name), array)
    (movie / "01_GT" / "SEG" / "man_seg007.tif").unlink()
    output = tmp_path / "out"
    config = PrepareConfig(
        input=(str(movie),), output=str(output), layout=("ctc",), split="fraction", seed=1
    )
    prepared = prepare(config)
    assert (prepared.images, prepared.reasons) == (8, {"partly_labelled": 1, "not_labelled": 1})
    rejects = pd.read_parquet(output / "rejects.parquet").set_index("image_id")["reason"]
    assert rejects.to_dict() == {"01-003": "partly_labelled", "01-007": "not_labelled"}
    assert json.loads((output / "dataset.json").read_text())["config"]["layout"] == ["ctc"]


def die_over_poison(source: Source, **options: Any) -> CheckedImage | Reject:
    """Stand in for a decoder that crashes the process."""
    if source.image_id.startswith("poison"):
        os._exit(1)
    return check_source(source, **options)


@pytest.mark.campaign
def test_images_that_crash_the_process_are_named_and_the_rest_is_prepared(
    generated: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("resunet_ray.data.prepare.check_source", die_over_poison)
    for folder in ("images", "masks"):
        shutil.copytree(generated / folder, tmp_path / "in" / folder)
        for name, copy in zip(
            sorted((tmp_path / "in" / folder).iterdir())[:2], ("poison-1", "poison-2"), strict=True
        ):
            name.rename(name.with_stem(copy))
    prepared = prepare(
        PrepareConfig(
            input=(str(tmp_path / "in"),), output=str(tmp_path / "out"), max_reject_fraction=0.2
        )
    )
    assert (prepared.images, prepared.reasons) == (18, {"crash": 2})
    rejects = pd.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert sorted(rejects["image_id"]) == ["poison-1", "poison-2"]
    assert (
        rejects["message"]
        .str.match(r"the process died 2 times on .*/images/poison-\d.png: out of memory, or")
        .all()
    )
    found = {path.suffix for path in (tmp_path / "out").iterdir() if path.name != "leases"}
    assert found == {".json", ".parquet"}


def test_a_finished_data_set_is_never_overwritten(dataset_uri: str, generated: Path) -> None:
    with pytest.raises(InputError, match="already holds a data set"):
        prepare(PrepareConfig(input=(str(generated),), output=dataset_uri))


def test_groups_and_files_decide_the_split(generated: Path, tmp_path: Path, cluster: str) -> None:
    metadata = str(generated / "metadata.csv")
    grouped = PrepareConfig(
        input=(str(generated),), output=str(tmp_path / "group"), metadata=metadata,
        split="group", group_column="modality", val_fraction=0.5, test_fraction=0,
    )  # fmt: skip
    assert sorted(prepare(grouped).splits.values()) == [7, 13]
    rows = read_all(grouped.output)
    assert rows.groupby("modality")["split"].nunique().max() == 1

    lists = tmp_path / "split.json"
    lists.write_text(
        json.dumps(
            {"train": ["synthetic-00001"], "val": ["synthetic-00002"], "note": "not a split"}
        )
    )
    stated = PrepareConfig(
        input=(str(generated),), output=str(tmp_path / "file"), split="file", split_file=str(lists)
    )
    assert prepare(stated).splits == {"train": 1, "val": 1}
    with pytest.raises(ConfigError, match="--split file and --split-file None"):
        PrepareConfig(input=("a",), output="b", split="file")


def test_rows_come_back_as_arrays_for_any_number_of_workers(dataset_uri: str) -> None:
    """Three workers together read each image once, although they share row groups."""
    dataset = open_dataset(dataset_uri)
    seen = [
        image
        for rank in range(3)
        for image in read_images(dataset, plan_once(dataset, "train", rank=rank, workers=3))
    ]
    assert sorted(image.index for image in seen) == list(range(12))
    assert len({image.image_id for image in seen}) == 12
    for image in seen:
        assert image.labels is not None
        assert image.image.shape == (96, 112, 3)
        np.testing.assert_array_equal(image.mask, image.labels > 0)
        assert image.modality in ("fluorescence", "stained")


def test_the_digest_covers_everything_that_training_learns_from(
    generated: Path, tmp_path: Path
) -> None:
    """Correcting one mask, one instance, one pixel size or one modality changes the digest."""

    def digest(name: str, *, metadata: str = "id,mpp,modality\n") -> str:
        (tmp_path / "metadata.csv").write_text(metadata)
        output = str(tmp_path / f"out-{name}")
        prepare(
            PrepareConfig(
                input=(str(tmp_path / "raw"),),
                output=output,
                metadata=str(tmp_path / "metadata.csv"),
            )
        )
        return open_dataset(output).digest

    for folder in ("images", "masks", "instances"):
        shutil.copytree(generated / folder, tmp_path / "raw" / folder)
    first = sorted((tmp_path / "raw" / "instances").iterdir())[0]
    plain = f"id,mpp,modality\n{first.stem},0.5,stained\n"
    found = [digest("same", metadata=plain)]
    found.append(digest("mpp", metadata=plain.replace("0.5", "0.25")))
    found.append(digest("modality", metadata=plain.replace("stained", "other")))
    labels = read_picture(first)
    labels[labels == labels.max()] = 1
    first.write_bytes(encode_labels(labels.astype(np.int32), name="labels"))
    found.append(digest("instances", metadata=plain))
    mask = tmp_path / "raw" / "masks" / first.name
    labels[0, 0] = 0 if labels[0, 0] else 1
    first.write_bytes(encode_labels(labels.astype(np.int32), name="labels"))
    mask.write_bytes(encode_png(np.where(labels > 0, 255, 0).astype(np.uint8)))
    found.append(digest("mask", metadata=plain))
    assert len(set(found)) == 5
    assert digest("again", metadata=plain) == found[-1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_of_which_a_file_was_replaced_after_it_was_listed_is_no_pair(
    tmp_path: Path, generated: Path, packed: bool
) -> None:
    """Its image might belong to the old content and its mask to the new."""
    folder = tmp_path / "in"
    for kind in ("images", "masks"):
        shutil.copytree(generated / kind, folder / kind)
    names = sorted(path.name for path in (folder / "images").iterdir())
    uri = shutil.make_archive(str(folder), "tar", folder) if packed else str(folder)
    cache = Cache(str(tmp_path / "cache"), 2**30)
    sources = list_sources([uri], cache=cache)
    shutil.copyfile(folder / "masks" / names[1], folder / "masks" / names[0])
    if packed:
        shutil.make_archive(str(folder), "tar", folder)
    checked = [
        check_source(source, max_pixels=10**6, known=Metadata(), cache=cache) for source in sources
    ]
    rejects = [found for found in checked if isinstance(found, Reject)]
    assert {reject.reason for reject in rejects} == {"changed"}
    expected = names if packed else names[:1]
    assert [f"{reject.image_id}.png" for reject in rejects] == expected
    assert "has changed since it was listed: run the same command again" in rejects[0].message
