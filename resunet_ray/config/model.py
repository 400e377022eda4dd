"""The configurations that a bundle keeps, and how training changes its images."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from resunet_ray.config.checks import ANY, TINY, require, require_range


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    in_channels: Literal[1, 3] = 3
    """Channels that the network sees: 3 for RGB, 1 for its luminance."""
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Filters of each level, the finest first."""
    norm_momentum: float = 0.1
    """Share of a new batch in the running statistics of batch normalisation (Keras's 0.99 is 0.01 here)."""
    norm_epsilon: float = 1e-3
    """Added to the variance in batch normalisation."""

    def __post_init__(self) -> None:
        require(
            len(self.widths) >= 2 and all(width > 0 and width % 16 == 0 for width in self.widths),
            # PyTorch 2.13's convolutions crash on CPUs in training with fewer channels in channels-last memory.
            f"--model.widths {self.widths}: expected at least two positive multiples of 16",
        )
        require_range(self, TINY, 1, "norm_momentum", "norm_epsilon", prefix="model.")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image reaches the network, in training and ever after."""

    resize: Annotated[int | None, tyro.conf.arg(aliases=["--resize"])] = None
    """None: native resolution, in tiles. A number: the whole image resized to a square of that side, as in the baseline."""
    intensity: Literal["stored", "percentiles"] = "stored"
    """stored: levels as they are. percentiles: each image stretched between its 1st and its 99.8th percentile, so that a dim one
    looks like a bright one."""
    tile: int = 512
    """Side of a tile, pixels; an image that is not larger is taken whole."""
    context: int = 32
    """Pixels of each tile's inner border that a neighbouring tile sees too, where the two are blended."""

    def __post_init__(self) -> None:
        require_range(self, 16, ANY, "resize", "tile", prefix="preprocess.")
        require(
            0 <= 2 * self.context < self.tile,
            f"--preprocess.context {self.context} leaves nothing of a tile of {self.tile}: expected less than half of it",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far training changes an image at random.

    Every probability is drawn once per crop. A range is the crop's own, from its darkest to its brightest level.
    """

    enabled: bool = True
    """Off: a plain random crop."""
    foreground_probability: float = 0.5
    """Probability that a crop is taken around a nucleus: in sparse images most others hold none."""
    flip: bool = True
    """Mirror, and turn by multiples of 90 degrees."""
    rotation_probability: float = 0.5
    """Probability of a free rotation of up to 45 degrees either way, on top."""
    scale: float = 1.4
    """Largest zoom; the smallest is its reciprocal. 1 is none."""
    brightness: float = 0.1
    """Largest change of brightness, as a fraction of the range."""
    contrast: float = 0.2
    """Largest relative change of contrast about the mean."""
    gamma: float = 1.4
    """Largest exponent of the tone curve; the smallest is its reciprocal. 1 is none."""
    invert_probability: float = 0.0
    """Probability of a negative: dark nuclei on white become bright nuclei on black."""
    hue_probability: float = 0.3
    """Probability of a change of hue and saturation."""
    hue: float = 0.06
    """Largest turn of the hue, as a fraction of the colour circle."""
    saturation: float = 0.3
    """Largest relative change of saturation."""
    blur_probability: float = 0.15
    """Probability of a Gaussian blur."""
    blur: float = 1.5
    """Largest standard deviation of the blur, pixels."""
    noise_probability: float = 0.15
    """Probability of Gaussian noise."""
    noise: float = 0.05
    """Largest standard deviation of the noise, as a fraction of the range."""

    def __post_init__(self) -> None:
        set_in_vain = [
            item.name
            for item in fields(self)
            if item.name != "enabled" and getattr(self, item.name) != item.default
        ]
        require(
            self.enabled or not set_in_vain,
            f"--augment.no-enabled and --augment.{'/'.join(set_in_vain)}: the second would be ignored, give one of them",
        )
        require_range(self, 1, ANY, "scale", "gamma", prefix="augment.")
        chances = [item.name for item in fields(self) if item.name.endswith("_probability")]
        require_range(
            self,
            0,
            1,
            *chances,
            "brightness",
            "contrast",
            "hue",
            "saturation",
            "noise",
            prefix="augment.",
        )
        require_range(self, 0, ANY, "blur", prefix="augment.")


@dataclass(frozen=True, kw_only=True)
class InstanceConfig:
    """How a probability becomes instances."""

    threshold: float = 0.5
    """A pixel is nucleus from this probability on."""
    min_area: int = 0
    """Instances of fewer pixels are dropped."""
    method: Literal["components", "watershed"] = "components"
    """components: what touches is one. watershed: cut where it narrows."""
    min_distance: int = 5
    """Least distance between the centres of two instances that touch, pixels (watershed)."""
