"""The bundle: weights and everything needed to use them, the one thing that training hands on.

model.safetensors   the weights
bundle.json         network, preprocessing, threshold, scores, provenance, and the digests of the other files
sample.png          a small image
expected.png        its probability, times 255, as the network gave it when it was saved
"""

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float32, Int32, UInt8
from pydantic import TypeAdapter, ValidationError

from resunet_ray import __version__, bundles, storage
from resunet_ray.config import InstanceConfig, ModelConfig, PreprocessConfig
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.errors import InputError, RunError
from resunet_ray.intensity import Range, measure_range
from resunet_ray.model.inference import autocast_dtype, predict
from resunet_ray.model.instances import find_instances
from resunet_ray.model.measures import measure_instances
from resunet_ray.model.resunet import ResUNet
from resunet_ray.schema import INSTANCE

BUNDLE_FILE = "bundle.json"
_WEIGHTS, _SAMPLE, _EXPECTED = "model.safetensors", "sample.png", "expected.png"
_TOLERANCE = 4 / 255
"""Largest difference that `self_test` accepts: a step of the 8-bit expectation, and what processors differ by."""


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What bundle.json says."""

    model: ModelConfig
    preprocess: PreprocessConfig
    instances: InstanceConfig
    mpp: float | None
    """Microns per pixel of the training data; None: unknown, or not one."""
    scores: dict[str, float]
    """On validation data, with the threshold above."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """The run, the data's digest, the configuration, the versions."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Digest of each other file."""


@dataclass(frozen=True)
class Segmentation:
    """What was found in one image."""

    labels: Int32[np.ndarray, "h w"]
    """The number of the nucleus that each pixel belongs to, from 1; 0 is background."""
    mask: UInt8[np.ndarray, "h w"]
    """1 where there is a nucleus."""
    probability: Float32[np.ndarray, "h w"]
    """Of each pixel to be nucleus."""
    nuclei: pd.DataFrame
    """One row a nucleus, in the order of their numbers: `centroid_y` and `centroid_x` (pixels), `area_px`, `perimeter_px`,
    `eccentricity`, `score` (mean probability), `touches_edge`, `polygon` (WKB)."""


@dataclass(frozen=True)
class Bundle:
    """A network that is ready to use."""

    uri: str
    info: BundleInfo
    digest: str
    """sha256 of bundle.json, which holds those of the other files: the model's name everywhere."""
    network: ResUNet
    device: torch.device

    def predict(
        self,
        images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
        *,
        batch_size: int,
        flips: bool = False,
        precision: str = "auto",
        ranges: Sequence[Range | None] | None = None,
    ) -> list[Float32[np.ndarray, "_h _w"]]:
        """The probability of each pixel of each image to be nucleus (see `inference.predict`)."""
        return predict(
            self.network,
            images,
            config=self.info.preprocess,
            channels=self.info.model.in_channels,
            device=self.device,
            dtype=autocast_dtype(self.device, precision),
            batch_size=batch_size,
            flips=flips,
            ranges=ranges,
        )

    def segment(self, image: UInt8[np.ndarray, "h w 3"], *, flips: bool = False) -> Segmentation:
        """Finds the nuclei of one image.

        Args:
            image: RGB.
            flips: average the probability over the image's four mirror images: four times the work.
        """
        levels = measure_range(image) if self.info.preprocess.intensity == "percentiles" else None
        (probability,) = self.predict([image], batch_size=1, flips=flips, ranges=[levels])
        labels = find_instances(probability, config=self.info.instances)
        nuclei = pd.DataFrame(
            measure_instances(labels, probability).to_pylist(),
            columns=[field.name for field in INSTANCE],
        )
        return Segmentation(labels, (labels > 0).astype(np.uint8), probability, nuclei)

    def self_test(self) -> None:
        """Runs the sample and compares.

        Raises:
            RunError: the output is not what it was when the bundle was saved.
        """
        sample = decode_stored(storage.read_bytes(storage.join(self.uri, _SAMPLE)))
        expected = (
            decode_stored(storage.read_bytes(storage.join(self.uri, _EXPECTED))).astype(np.float32)
            / 255
        )
        (found,) = self.predict([sample], batch_size=1, precision="fp32")
        difference = float(np.abs(found - expected).max())
        if difference > _TOLERANCE:
            raise RunError(
                f"the bundle {self.uri} gives another output here than where it was saved: its sample differs by up to "
                f"{difference:.3f}, expected at most {_TOLERANCE:.3f}. Compare the versions in its provenance with those here"
            )


def build_network(config: ModelConfig) -> ResUNet:
    """A new network with random weights, in channels-last memory."""
    network = ResUNet(
        in_channels=config.in_channels,
        out_channels=1,
        widths=config.widths,
        norm_momentum=config.norm_momentum,
        norm_epsilon=config.norm_epsilon,
    )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def save_bundle(
    uri: str,
    *,
    weights: dict[str, torch.Tensor],
    info: BundleInfo,
    sample: UInt8[np.ndarray, "h w 3"],
) -> Bundle:
    """Writes a bundle, bundle.json last: without it there is none.

    Args:
        uri: the folder.
        weights: the state dictionary of the network.
        info: all that bundle.json says but the digests.
        sample: a small image for the self-test.
    """
    network = build_network(info.model)
    network.load_state_dict(weights)
    draft = Bundle(uri, info, "", network.eval(), torch.device("cpu"))
    (probability,) = draft.predict([sample], batch_size=1, precision="fp32")
    files = {
        _WEIGHTS: safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in weights.items()}
        ),
        _SAMPLE: encode_png(sample),
        _EXPECTED: encode_png(np.rint(probability * 255).astype(np.uint8)),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    info = replace(info, sha256=digests)
    for name, content in files.items():
        storage.write_bytes(storage.join(uri, name), content)
    storage.write_bytes(storage.join(uri, BUNDLE_FILE), json.dumps(asdict(info), indent=2).encode())
    return load_bundle(uri)


def copy_bundle(source: str, uri: str, *, provenance: dict[str, Any]) -> None:
    """Copies a bundle to where another may be, with more to its provenance."""
    info, _ = read_bundle_info(source)
    storage.delete_file(storage.join(uri, BUNDLE_FILE))
    for name in info.sha256:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(source, name)))
    info = replace(info, provenance={**info.provenance, **provenance})
    storage.write_bytes(storage.join(uri, BUNDLE_FILE), json.dumps(asdict(info), indent=2).encode())


def read_bundle_info(uri: str) -> tuple[BundleInfo, str]:
    """What bundle.json says, and the bundle's digest, without loading the weights.

    Raises:
        InputError: there is no bundle, or its bundle.json is not one.
    """
    location = storage.join(bundles.locate(uri), BUNDLE_FILE)
    if not storage.exists(location):
        names = ", ".join(bundles.list_names())
        raise InputError(
            f"{uri} holds no {BUNDLE_FILE}: expected a bundle that jobs/train.py wrote, or the name of one: {names}"
        )
    content = storage.read_bytes(location)
    try:
        info = TypeAdapter(BundleInfo).validate_json(content)
    except ValidationError as error:
        raise InputError(
            f"{location} is not a bundle of this version: {error.errors()[0]['loc']} {error.errors()[0]['msg']}"
        ) from None
    if info.sha256.keys() != {_WEIGHTS, _SAMPLE, _EXPECTED}:
        raise InputError(
            f"{uri} lists {', '.join(sorted(info.sha256))}: expected {_WEIGHTS}, {_SAMPLE} and {_EXPECTED}"
        )
    return info, hashlib.sha256(content).hexdigest()


def load_bundle(uri: str, *, device: torch.device | None = None) -> Bundle:
    """The bundle at a location, its digests checked, its network in evaluation mode.

    Args:
        uri: the folder.
        device: where the network goes; the CPU by default.

    Raises:
        InputError: it is missing, damaged, or not of this version.
    """
    uri = bundles.locate(uri)
    info, digest = read_bundle_info(uri)
    for name, expected in info.sha256.items():
        found = hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest()
        if found != expected:
            raise InputError(
                f"{storage.join(uri, name)} is damaged: its sha256 is {found}, bundle.json says {expected}"
            )
    network = build_network(info.model)
    try:
        network.load_state_dict(
            safetensors.torch.load(storage.read_bytes(storage.join(uri, _WEIGHTS)))
        )
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the weights of {uri} do not fit the network of its bundle.json: {error}"
        ) from None
    device = device or torch.device("cpu")
    return Bundle(uri, info, digest, network.eval().to(device), device)


def versions() -> dict[str, str]:
    """What the code ran with, for the provenance."""
    libraries = {
        name: metadata.version(name)
        for name in ("ray", "torch", "numpy", "opencv-python-headless", "pyarrow")
    }
    return {"resunet_ray": __version__, "python": platform.python_version(), **libraries}
