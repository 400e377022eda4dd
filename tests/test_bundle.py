"""A bundle gives the same output wherever it is loaded, or is refused as damaged."""

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from resunet_ray import bundles
from resunet_ray.bundle import Bundle, load_bundle, save_bundle
from resunet_ray.bundle_info import BundleInfo, read_bundle_info
from resunet_ray.config import InstanceConfig, ModelConfig, PreprocessConfig
from resunet_ray.config.model import Precision
from resunet_ray.data.images import decode_image
from resunet_ray.data.labels import decode_mask
from resunet_ray.data.synthetic import generate_image
from resunet_ray.errors import ConfigError, InputError, RunError
from resunet_ray.intensity import Range, measure_range
from resunet_ray.model.instances import find_instances, threshold_mask
from resunet_ray.model.matching import count_overlaps, score_instances
from resunet_ray.model.metrics import count_pixels, score_counts
from resunet_ray.model.resunet import build_network

SMALL = ModelConfig(widths=(16, 32))


def saved(folder: Path) -> Bundle:
    torch.manual_seed(0)
    image, _ = generate_image(
        40, 56, modality="stained", num_nuclei=6, rng=np.random.default_rng(0)
    )
    info = BundleInfo(
        model=SMALL,
        preprocess=PreprocessConfig(tile=64, context=8),
        instances=InstanceConfig(threshold=0.25, min_area=9),
        mpp=0.5,
        scores={"f1": 0.9},
        provenance={"run": "test"},
    )
    return save_bundle(
        str(folder), weights=build_network(SMALL).state_dict(), info=info, sample=image
    )


def test_a_bundle_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    before, after = saved(tmp_path), load_bundle(str(tmp_path))
    assert (after.info, after.digest) == (before.info, before.digest)
    assert len(after.digest) == 64
    assert after.info.instances == InstanceConfig(threshold=0.25, min_area=9)
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    one, other = (
        bundle.predict([image], batch_size=2, precision="fp32")[0].probability
        for bundle in (before, after)
    )
    np.testing.assert_array_equal(one, other)
    after.self_test()
    files = ["bundle.json", "expected.png", "model.safetensors", "sample.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_damaged_weights_are_refused_and_a_changed_network_fails_its_self_test(
    tmp_path: Path,
) -> None:
    bundle = saved(tmp_path)
    with torch.no_grad():
        bundle.network.head.weight.add_(1)
    with pytest.raises(RunError, match="gives another output here than where it was saved"):
        bundle.self_test()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(InputError, match=r"model.safetensors is damaged: its sha256 is"):
        load_bundle(str(tmp_path))


def test_other_tiles_are_taken_where_they_fit_the_network(tmp_path: Path) -> None:
    info = saved(tmp_path).info
    assert info.with_tile(None) == info
    wider = info.with_tile(130)
    assert (wider.preprocess.tile, wider.preprocess.context) == (130, 8)
    for side in (129, 16, 0):
        with pytest.raises(ConfigError, match=f"--tile {side}: must be a multiple of 2, .* 16"):
            info.with_tile(side)
    whole = replace(info, preprocess=replace(info.preprocess, resize=256))
    with pytest.raises(ConfigError, match="has no tiles"):
        whole.with_tile(128)


def test_a_bundle_that_lists_other_files_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "bundle")
    content = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    content["sha256"]["../../secret"] = "0" * 64
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError,
        match=r"lists ../../secret, expected.png, .*: expected model.safetensors, sample.png and",
    ):
        load_bundle(str(tmp_path / "bundle"))


def test_folders_without_a_valid_bundle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="holds no bundle.json: expected a bundle that jobs/train.py wrote"
    ):
        load_bundle(str(tmp_path))
    saved(tmp_path)
    content = json.loads((tmp_path / "bundle.json").read_text())
    content["model"]["widths"] = "many"
    (tmp_path / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"is not a bundle of this version: \('model', 'widths'"):
        read_bundle_info(str(tmp_path))


def test_dim_images_and_parts_are_scaled_to_the_range_of_the_whole_image(tmp_path: Path) -> None:
    bundle = saved(tmp_path)
    preprocess = PreprocessConfig(tile=64, context=8, intensity="percentiles")
    info = replace(bundle.info, preprocess=preprocess, sha256={})
    sample = np.zeros((48, 40, 3), np.uint8)
    bundle = save_bundle(
        str(tmp_path / "scaled"), weights=bundle.network.state_dict(), info=info, sample=sample
    )
    image = generate_image(
        64, 64, modality="fluorescence", num_nuclei=6, rng=np.random.default_rng(0)
    )[0]

    def predict(pixels: np.ndarray, ranges: list[Range | None] | None = None) -> np.ndarray:
        return bundle.predict([pixels], batch_size=1, precision="fp32", ranges=ranges)[
            0
        ].probability

    whole, dim = predict(image), predict(image // 4 + 9)
    part = predict(image[:32], [measure_range(image)])
    assert np.abs(whole - dim).mean() < 0.01
    # Pixels near the cut have another neighbourhood.
    np.testing.assert_allclose(part[:16], whole[:16], atol=0.02)


def test_the_bundle_that_comes_with_the_package_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle("nuclei")
    bundle.self_test()
    assert sum(path.stat().st_size for path in Path(bundle.uri).iterdir()) <= 10e6
    assert bundles.absolute("nuclei") == "nuclei"
    assert bundles.absolute("other") == str(tmp_path / "other")
    assert bundles.absolute("./nuclei") == str(tmp_path / "nuclei")
    with pytest.raises(
        InputError, match=r"nucleus holds no bundle.json: expected .*, or the name of one: nuclei"
    ):
        load_bundle("nucleus")


def test_what_openvino_cannot_compute_is_left_to_torch_or_refused(tmp_path: Path) -> None:
    model = replace(SMALL, bridge="psp")
    info = replace(saved(tmp_path / "plain").info, model=model, sha256={})
    weights, sample = build_network(model).state_dict(), np.zeros((40, 56, 3), np.uint8)
    uri = str(tmp_path / "psp")
    assert save_bundle(uri, weights=weights, info=info, sample=sample).on_cpu is None
    with pytest.raises(ConfigError, match="--engine openvino: the bridge psp pools by the size"):
        load_bundle(uri, engine="openvino")


def test_int8_is_taken_where_it_can_be_had_and_refused_elsewhere(tmp_path: Path) -> None:
    bundle = saved(tmp_path / "plain")
    assert bundle.info.quantization == {}
    assert bundle.dtype("auto") is not torch.int8
    with pytest.raises(ConfigError, match="--precision int8: .* expected auto, fp32 or bf16"):
        bundle.dtype("int8")
    with pytest.raises(ConfigError, match="Here, torch computes .* on a CPU"):
        load_bundle("nuclei", engine="torch").self_test("int8")


def test_a_bundle_whose_ranges_are_not_its_network_s_fails_its_self_test_in_int8(
    tmp_path: Path,
) -> None:
    bundle = load_bundle("nuclei", engine="openvino")
    wrong = {name: (low / 20, high / 20) for name, (low, high) in bundle.info.quantization.items()}
    info = replace(bundle.info, quantization=wrong, sha256={})
    image, _ = generate_image(
        96, 96, modality="fluorescence", num_nuclei=9, rng=np.random.default_rng(0)
    )
    uri = str(tmp_path / "wrong")
    save_bundle(uri, weights=bundle.network.state_dict(), info=info, sample=image)
    other = load_bundle(uri, engine="openvino")
    other.self_test()
    with pytest.raises(RunError, match="in int8 and on average, differs by .* at most 0.016"):
        other.self_test("int8")


def test_in_int8_the_bundle_that_comes_with_the_package_finds_as_many_nuclei(
    real_data: Path,
) -> None:
    bundle = load_bundle("nuclei", engine="openvino")
    names = json.loads((real_data / "split-stardist.json").read_text())["val"][:12]
    quality: dict[Precision, list[float]] = {"fp32": [], "int8": []}
    for name in names:
        image = decode_image((real_data / "images" / f"{name}.png").read_bytes(), name=name)
        path = real_data / "instances" / f"{name}.png"
        true = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)).astype(np.int32)
        for precision, scores in quality.items():
            (found,) = bundle.predict([image], batch_size=1, precision=precision)
            labels = find_instances(found, config=bundle.info.instances)
            scores.append(score_instances(count_overlaps(true, labels)).pq)
    assert np.mean(quality["int8"]) > np.mean(quality["fp32"]) - 0.005, quality
    assert quality["int8"] != quality["fp32"]


def test_the_card_of_the_bundle_states_its_scores() -> None:
    bundle = load_bundle("nuclei")
    scores = bundle.info.provenance["scores"]
    rows = [scores["test"], scores["validation"], *scores["validation"]["by_modality"].values()]
    columns = ("f1", "jaccard", "ap50", "ap75", "pq")
    expected = [[str(row["images"]), *(f"{row[name]:.3f}" for name in columns)] for row in rows]
    card = (Path(bundle.uri) / "README.md").read_text()
    table = re.findall(r"^\| [^|]+ \| (\d+.*) \|$", card, flags=re.MULTILINE)
    assert [row.split(" | ") for row in table] == expected
    assert scores["validation"]["f1"] == round(bundle.info.scores["f1"], 3)


def test_the_bundle_that_comes_with_the_package_works_on_test_images(real_data: Path) -> None:
    """It also works on dim ones, with a quarter of the intensity levels."""
    bundle = load_bundle("nuclei")
    names = json.loads((real_data / "split-stardist.json").read_text())["test"][:10]
    for divisor in (1, 4):
        scores = []
        for name in names:
            image = decode_image((real_data / "images" / f"{name}.png").read_bytes(), name=name)
            truth = decode_mask((real_data / "masks" / f"{name}.png").read_bytes(), name=name)
            (found,) = bundle.predict([image // np.uint8(divisor)], batch_size=1)
            mask = threshold_mask(found.probability, threshold=bundle.info.instances.threshold)
            scores.append(float(score_counts(count_pixels(mask, truth))["f1"]))
        assert np.mean(scores) > 0.9, (divisor, scores)
