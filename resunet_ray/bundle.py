"""The bundle, the result of training: weights and everything needed to use them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float32, Int32, UInt8

from resunet_ray import bundles, storage
from resunet_ray.bundle_info import (
    BUNDLE_FILE,
    EXPECTED,
    SAMPLE,
    WEIGHTS,
    BundleInfo,
    read_bundle_info,
)
from resunet_ray.config.model import Engine, Precision
from resunet_ray.data.images import decode_stored, encode_png
from resunet_ray.errors import ConfigError, InputError, RunError
from resunet_ray.intensity import Range, measure_range
from resunet_ray.model import openvino
from resunet_ray.model.diameter import Images, Ranges, choose_scale, predict_scaled
from resunet_ray.model.inference import (
    Network,
    autocast_dtype,
    default_batch_size,
    predict,
    take_stream,
)
from resunet_ray.model.instances import find_instances
from resunet_ray.model.measures import measure_instances
from resunet_ray.model.prediction import Prediction
from resunet_ray.model.resunet import ResUNet, build_network
from resunet_ray.schema import INSTANCE

TOLERANCE = 4 / 255
"""Largest difference of an output, as stored in 8 bits, that `self_test` accepts: it covers the
rounding and differences between processors. In int8, the largest mean difference."""


@dataclass(frozen=True)
class Segmentation:
    """The nuclei of one image."""

    labels: Int32[np.ndarray, "h w"]
    """For each pixel, the number of its nucleus, from 1; 0 is background."""
    mask: UInt8[np.ndarray, "h w"]
    """1 for nucleus, 0 for background."""
    probability: Float32[np.ndarray, "h w"]
    """Probability that a pixel belongs to a nucleus."""
    nuclei: pd.DataFrame
    """One row per nucleus, in the order of their numbers: `centroid_y` and `centroid_x` (pixels),
    `area_px`, `perimeter_px`, `eccentricity`, `score` (mean probability), `touches_edge`, `polygon`
    (WKB)."""


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle: a network ready to use."""

    uri: str
    info: BundleInfo
    digest: str
    """SHA-256 of bundle.json, which holds the digests of the other files. It identifies the bundle
    wherever results refer to it."""
    network: ResUNet
    device: torch.device
    on_cpu: openvino.OpenVinoNetwork | None = None
    """What computes the network in place of torch."""

    @property
    def default_batch_size(self) -> int:
        """How many tiles to compute at once."""
        return default_batch_size(self.device)

    def begin_thread(self) -> None:
        """Prepare a thread that will predict while others do."""
        take_stream(self.device)

    def is_broken_by(self, error: Exception) -> bool:
        """Whether the network is lost to this process: CUDA computes no more after most errors."""
        return self.device.type == "cuda" and not isinstance(error, torch.OutOfMemoryError)

    def dtype(self, precision: Precision) -> torch.dtype | None:
        """Return what the network is computed in; None means full precision.

        `auto` is int8 where OpenVINO computes and the bundle knows its ranges; else bfloat16 where
        the device computes in it; else full precision.

        Raises:
            ConfigError: int8 is asked for, and cannot be had.
        """
        takes_int8 = self.on_cpu is not None and bool(self.info.quantization)
        if precision == "int8" and not takes_int8:
            raise ConfigError(
                "--precision int8: only OpenVINO computes it, if the bundle keeps its scores, as "
                f"nuclei does. Here, {'torch' if self.on_cpu is None else 'OpenVINO'} computes "
                f"{self.uri} on a {self.device.type.upper()}: expected auto, fp32 or bf16"
            )
        if precision == "int8" or (precision == "auto" and takes_int8):
            return torch.int8
        return autocast_dtype(self.device, precision)

    def compute(self, dtype: torch.dtype | None) -> Network:
        """Return what computes the network in int8, bfloat16 or, with None, in full precision."""
        return self.network if self.on_cpu is None else partial(self.on_cpu, dtype=dtype)

    def predict(
        self,
        images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
        *,
        batch_size: int,
        flips: bool = False,
        precision: Precision = "auto",
        ranges: Sequence[Range | None] | None = None,
        scales: Sequence[float | None] | None = None,
    ) -> list[Prediction]:
        """Predict images of any sizes; see `inference.predict` for the other arguments.

        Args:
            images: RGB images.
            batch_size: tiles that go through the network at once.
            flips: whether to average over the four mirror images.
            precision: fp32, bf16, int8 or auto; see `dtype`.
            ranges: intensity range of the whole image that each of `images` is a part of.
            scales: at which each image is seen (see `model.diameter.choose_scale`); by default,
                the head `diameter` decides.
        """
        dtype = self.dtype(precision)

        def run(some: Images, levels: Ranges, packed: bool) -> list[Prediction]:
            return predict(
                self.compute(dtype),
                some,
                config=self.info.preprocess,
                channels=self.info.model.in_channels,
                heads=self.info.model.heads,
                device=self.device,
                dtype=None if dtype is torch.int8 else dtype,
                batch_size=batch_size,
                flips=flips,
                ranges=levels,
                packed=packed,
            )

        return predict_scaled(run, images, ranges, scales=scales or [None] * len(images))

    def segment(
        self, image: UInt8[np.ndarray, "h w 3"], *, flips: bool = False, mpp: float | None = None
    ) -> Segmentation:
        """Find the nuclei of one image.

        Args:
            image: RGB image.
            flips: whether to average the probability over the image's four mirror images, which
                takes four times as long.
            mpp: microns per pixel of the image, which is seen at the bundle's if that has one.
        """
        scale = choose_scale("auto", mpp=mpp, bundle_mpp=self.info.mpp)
        levels = measure_range(image) if self.info.preprocess.intensity == "percentiles" else None
        (found,) = self.predict([image], batch_size=1, flips=flips, ranges=[levels], scales=[scale])
        labels = find_instances(found, config=self.info.instances)
        nuclei = pd.DataFrame(
            measure_instances(labels, found.probability).to_pylist(),
            columns=[field.name for field in INSTANCE],
        )
        mask = (labels > 0).astype(np.uint8)
        return Segmentation(labels, mask, found.probability, nuclei)

    def self_test(self, precision: Precision = "fp32") -> None:
        """Check that the network gives the same output as when the bundle was saved.

        Raises:
            ConfigError: it cannot be computed in int8.
            RunError: an output for the sample differs by more than the tolerance.
        """
        sample = decode_stored(storage.read_bytes(storage.join(self.uri, SAMPLE)))
        expected = decode_stored(storage.read_bytes(storage.join(self.uri, EXPECTED)))
        in_8_bits = self.dtype(precision) is torch.int8
        (found,) = self.predict(
            [sample], batch_size=1, precision="int8" if in_8_bits else "fp32", scales=[1.0]
        )
        differences = np.abs(found.encode().astype(np.float32) - expected) / 255
        difference = float(differences.mean() if in_8_bits else differences.max())
        how = ", in int8 and on average," if in_8_bits else ""
        if difference > TOLERANCE:
            raise RunError(
                f"the bundle {self.uri} gives another output here than where it was saved: the "
                f"output for its sample{how} differs by {difference:.3f}, expected at most "
                f"{TOLERANCE:.3f}. Compare the versions in its provenance with those installed"
            )


def save_bundle(
    uri: str,
    *,
    weights: dict[str, torch.Tensor],
    info: BundleInfo,
    sample: UInt8[np.ndarray, "h w 3"],
) -> Bundle:
    """Write a bundle and load it.

    bundle.json is written last: a folder without it is no bundle.

    Args:
        uri: folder of the bundle.
        weights: state dictionary of the network.
        info: contents of bundle.json; the digests are filled in.
        sample: a small image for the self-test.
    """
    draft = Bundle(uri, info, "", build_network(info.model, weights), torch.device("cpu"))
    (found,) = draft.predict([sample], batch_size=1, precision="fp32", scales=[1.0])
    files = {
        WEIGHTS: safetensors.torch.save(
            {name: tensor.contiguous() for name, tensor in weights.items()}
        ),
        SAMPLE: encode_png(sample),
        EXPECTED: encode_png(found.encode()),
    }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    info = replace(info, sha256=digests)
    for name, content in files.items():
        storage.write_bytes(storage.join(uri, name), content)
    storage.write_bytes(storage.join(uri, BUNDLE_FILE), json.dumps(asdict(info), indent=2).encode())
    return load_bundle(uri)


def load_bundle(
    uri: str,
    *,
    device: torch.device | None = None,
    engine: Engine = "auto",
    streams: int = 1,
) -> Bundle:
    """Load a bundle and check its digests; its network is in evaluation mode.

    Args:
        uri: folder of the bundle, or the name of one that comes with the package.
        device: device for the network; the CPU by default.
        engine: what computes the network on a CPU.
        streams: threads that will predict at a time. Each uses `torch.get_num_threads()` cores.

    Raises:
        InputError: the bundle is missing, damaged, or not of this version.
        ConfigError: the engine cannot compute it.
    """
    uri = bundles.locate(uri)
    info, digest = read_bundle_info(uri)
    for name, expected in info.sha256.items():
        found = hashlib.sha256(storage.read_bytes(storage.join(uri, name))).hexdigest()
        if found != expected:
            raise InputError(
                f"{storage.join(uri, name)} is damaged: its sha256 is {found}, bundle.json says "
                f"{expected}"
            )
    weights = storage.read_bytes(storage.join(uri, WEIGHTS))
    try:
        network = build_network(info.model, safetensors.torch.load(weights))
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(
            f"the weights of {uri} do not fit the network of its bundle.json: {error}"
        ) from None
    device = device or torch.device("cpu")
    network.to(device)
    on_cpu = None
    if device.type == "cpu" and openvino.takes(info.model, engine):
        channels = info.model.in_channels
        on_cpu = openvino.OpenVinoNetwork(
            network, channels=channels, streams=streams, ranges=info.quantization
        )
    return Bundle(uri, info, digest, network, device, on_cpu)
