"""From images to probabilities: resize or tile, run full batches, merge the tiles."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from resunet_ray.config import PreprocessConfig
from resunet_ray.config.model import Head
from resunet_ray.intensity import Range, stretch
from resunet_ray.model.heads import activate, unflip
from resunet_ray.model.prediction import Prediction, count_outputs
from resunet_ray.model.preprocess import preprocess
from resunet_ray.model.tiling import Box, blend_weights, plan_tiles

_FLIPS = (2,), (3,), (2, 3)
_MERGED_PIXELS = 2**24  # of an image whose tiles a GPU merges; those of larger ones, the host

Network = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n k h w"]]
"""Images → logits."""


def autocast_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """Return the autocast dtype for a precision, or None for full precision.

    Args:
        device: device that runs the network.
        precision: `fp32`, `bf16`, or `auto`: bfloat16 if the device computes in it natively.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if capability.get("avx512_bf16") or capability.get("bf16") else None


def default_batch_size(device: torch.device) -> int:
    """Return how many tiles to compute at once: on CPUs, more than one is slower."""
    return 8 if device.type == "cuda" else 1


def take_stream(device: torch.device) -> None:
    """Give this thread a stream of its own on a GPU, which computes while another's copies."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def predict(
    model: Network,
    images: Sequence[UInt8[np.ndarray, "_h _w 3"]],
    *,
    config: PreprocessConfig,
    channels: int,
    heads: tuple[Head, ...],
    device: torch.device,
    dtype: torch.dtype | None,
    batch_size: int,
    flips: bool = False,
    ranges: Sequence[Range | None] | None = None,
    packed: bool = False,
) -> list[Prediction]:
    """Predict images of any sizes.

    Args:
        model: the network; if it is a module, in evaluation mode, on `device`.
        images: images of any sizes; tiles of equal shape share a batch across images.
        config: tiling, or the resize that the network was trained with.
        channels: channels that the network takes (see `preprocess`).
        heads: heads that the network has beside the mask.
        device: device that the network is on.
        dtype: autocast dtype; None for full precision.
        batch_size: tiles that go through the network at once.
        flips: whether to average over the four mirror images.
        ranges: intensity range of the whole image that each of `images` is a part of; only used if
            the network's intensity scale is `percentiles`. None: each image is a whole.
        packed: whether predictions leave the device packed.

    Returns:
        One prediction per image, at the image's own size.
    """
    inputs = list(images)
    if config.intensity == "percentiles":
        known = ranges or [None] * len(inputs)
        inputs = [stretch(image, levels) for image, levels in zip(inputs, known, strict=True)]
    if config.resize is not None:
        side = config.resize
        inputs = [
            cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR) for image in inputs
        ]
    merged = [_Merged(image.shape[:2], count_outputs(heads), device=device) for image in inputs]
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None),
    ):
        for places in _batches(inputs, config=config, batch_size=batch_size):
            stack = np.stack([inputs[index][tile.window] for index, tile in places])
            x = preprocess(torch.from_numpy(stack).to(device), channels=channels)
            maps = _predict_tiles(model, x, heads=heads, flips=flips)
            for (index, tile), piece in zip(places, maps, strict=True):
                merged[index].add(piece, tile, context=config.context)
        packs = packed and config.resize is None
        found = [one.fetch(heads, packed=packs) for one in merged]
    if config.resize is not None:
        found = [one.resize(*image.shape[:2]) for one, image in zip(found, images, strict=True)]
    return found


class _Merged:
    """An image's maps, put together from its tiles where they were computed."""

    def __init__(self, shape: tuple[int, int], outputs: int, *, device: torch.device) -> None:
        self._shape, self._outputs = shape, outputs
        self._device = device if shape[0] * shape[1] <= _MERGED_PIXELS else torch.device("cpu")
        self._maps: Float[Tensor, "k h w"] | None = None

    def add(self, piece: Float[Tensor, "k _h _w"], tile: Box, *, context: int) -> None:
        """Add the maps of a tile."""
        if tile.shape == self._shape:
            self._maps = piece
            return
        if self._maps is None:
            self._maps = torch.zeros((self._outputs, *self._shape), device=self._device)
        height, width = self._shape
        rows, columns = (
            torch.from_numpy(weight).to(self._device)
            for weight in blend_weights(tile, height=height, width=width, context=context)
        )
        piece = piece.to(self._device)
        piece *= rows[:, None] * columns
        self._maps[:, *tile.window] += piece

    def fetch(self, heads: tuple[Head, ...], *, packed: bool) -> Prediction:
        """Return the prediction, which shares no memory with the others of a batch."""
        maps, self._maps = self._maps, None
        assert maps is not None, "an image has at least one tile"
        if not (packed and heads):
            return Prediction(maps.clone().cpu().numpy(), heads)
        return Prediction(maps.half().cpu().numpy(), heads, maps[0].clone().cpu().numpy())


def _batches(
    inputs: Sequence[np.ndarray], *, config: PreprocessConfig, batch_size: int
) -> list[list[tuple[int, Box]]]:
    by_shape: dict[tuple[int, int], list[tuple[int, Box]]] = defaultdict(list)
    for index, image in enumerate(inputs):
        height, width = image.shape[:2]
        side = max(height, width) if config.resize is not None else config.tile
        for tile in plan_tiles(height, width, tile=side, context=config.context):
            by_shape[tile.shape].append((index, tile))
    return [
        places[start : start + batch_size]
        for places in by_shape.values()
        for start in range(0, len(places), batch_size)
    ]


def _predict_tiles(
    model: Network, x: Float[Tensor, "n c h w"], *, heads: tuple[Head, ...], flips: bool
) -> Float[Tensor, "n k h w"]:
    maps = activate(model(x), heads=heads)
    if not flips:
        return maps
    for dims in _FLIPS:
        maps += unflip(activate(model(x.flip(dims)), heads=heads), dims=dims, heads=heads)
    return maps / (1 + len(_FLIPS))
