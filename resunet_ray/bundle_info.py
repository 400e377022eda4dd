"""What a bundle says of itself, read without its weights, and without torch.

model.safetensors   the weights
bundle.json         network, preprocessing, threshold, scores, provenance, the other files' digests
sample.png          a small image
expected.png        its probability, times 255, as computed when the bundle was saved
"""

import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from resunet_ray import __version__, bundles, storage
from resunet_ray.config import InstanceConfig, ModelConfig, PreprocessConfig
from resunet_ray.config.checks import require
from resunet_ray.errors import InputError

BUNDLE_FILE = "bundle.json"
WEIGHTS, SAMPLE, EXPECTED = "model.safetensors", "sample.png", "expected.png"


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """The contents of bundle.json."""

    model: ModelConfig
    preprocess: PreprocessConfig
    instances: InstanceConfig
    mpp: float | None
    """Microns per pixel of the training data; None if unknown or if images differ."""
    scores: dict[str, float]
    """Scores on the validation data, at the threshold in `instances`."""
    quantization: dict[str, tuple[float, float]] = field(default_factory=dict)
    """What the inputs of those convolutions lie between that may be computed in 8 bits, by their
    names; empty if that would lower the scores."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """The run, digest of the data, configuration and versions."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Digest of each of the other files, by name."""

    def with_tile(self, side: int | None) -> Self:
        """Return what sees an image in other tiles.

        Args:
            side: of the tiles, pixels. None: as they are.

        Raises:
            ConfigError: the network cannot.
        """
        if side is None:
            return self
        stride, overlap = 2 ** (len(self.model.widths) - 1), 2 * self.preprocess.context
        require(
            self.preprocess.resize is None,
            f"--tile {side}: the bundle has no tiles, it sees each image whole",
        )
        require(
            side % stride == 0 and side > overlap,
            f"--tile {side}: must be a multiple of {stride}, the stride of the network's deepest "
            f"level, and above {overlap}, the overlap of the bundle's tiles",
        )
        return replace(self, preprocess=replace(self.preprocess, tile=side))


def copy_bundle(source: str, uri: str, *, provenance: dict[str, Any]) -> None:
    """Copy a bundle, replacing one already at `uri`, and add to its provenance."""
    info, _ = read_bundle_info(source)
    storage.delete_file(storage.join(uri, BUNDLE_FILE))
    for name in info.sha256:
        storage.write_bytes(storage.join(uri, name), storage.read_bytes(storage.join(source, name)))
    info = replace(info, provenance={**info.provenance, **provenance})
    storage.write_bytes(storage.join(uri, BUNDLE_FILE), json.dumps(asdict(info), indent=2).encode())


def read_bundle_info(uri: str) -> tuple[BundleInfo, str]:
    """Read bundle.json and compute the bundle's digest, without loading the weights.

    Raises:
        InputError: there is no bundle, or its bundle.json is invalid.
    """
    location = storage.join(bundles.locate(uri), BUNDLE_FILE)
    if not storage.exists(location):
        names = ", ".join(bundles.list_names())
        raise InputError(
            f"{uri} holds no {BUNDLE_FILE}: expected a bundle that jobs/train.py wrote, or the "
            f"name of one: {names}"
        )
    content = storage.read_bytes(location)
    try:
        info = TypeAdapter(BundleInfo).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{location} is not a bundle of this version: {first['loc']} {first['msg']}"
        ) from None
    if info.sha256.keys() != {WEIGHTS, SAMPLE, EXPECTED}:
        raise InputError(
            f"{uri} lists {', '.join(sorted(info.sha256))}: expected {WEIGHTS}, {SAMPLE} and "
            f"{EXPECTED}"
        )
    return info, hashlib.sha256(content).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the main libraries, for the provenance."""
    libraries = {
        name: metadata.version(name)
        for name in ("ray", "torch", "numpy", "opencv-python-headless", "pyarrow")
    }
    return {"resunet_ray": __version__, "python": platform.python_version(), **libraries}
