"""The configurations that a bundle keeps, and that of augmentation."""

from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Annotated, Literal

import tyro

from resunet_ray.config.checks import ANY, TINY, require, require_range
from resunet_ray.config.roles import Tuning

Head = Literal["distance", "centre", "diameter"]
Diameter = Literal["auto", "none"] | float
Block = Literal["residual", "dense", "atrous"]
Bridge = Literal["plain", "psp"]
Engine = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "bf16", "int8"]


def has_openvino() -> bool:
    """Whether OpenVINO is installed: the extra `cpu`."""
    return find_spec("openvino") is not None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    in_channels: Literal[1, 3] = 3
    """Channels of the network's input: 3 for RGB, 1 for its luminance."""
    widths: Tuning[tuple[int, ...]] = (16, 32, 64, 128, 256)
    """Filters of each level, finest level first."""
    block: Tuning[Block] = "residual"
    """What each level computes. residual: two convolutions and a shortcut, as in the baseline.
    dense: each convolution sees the output of all before it. atrous: parallel convolutions at
    dilations up to 31, as in ResUNet-a; more than twice the work."""
    bridge: Tuning[Bridge] = "plain"
    """What lies between encoder and decoder. plain: two convolutions. psp: maxima over the whole
    tile and parts of it, as in ResUNet-a; then a pixel's probability depends on its whole tile."""
    heads: tuple[Head, ...] = ()
    """Outputs beside the mask, learnt from instances. distance to the border of the nucleus, and
    way to its centre: they separate touching nuclei. diameter: lets images with large nuclei be
    seen smaller. Given without a value: the mask alone."""
    norm_momentum: Tuning[float] = 0.1
    """Weight of a new batch in the running statistics of batch normalisation (Keras's 0.99 is 0.01
    here)."""
    norm_epsilon: Tuning[float] = 1e-3
    """Added to the variance in batch normalisation."""

    def __post_init__(self) -> None:
        require(
            len(self.widths) >= 2 and all(width > 0 and width % 16 == 0 for width in self.widths),
            # Training with other numbers of channels in channels-last memory crashes PyTorch 2.13
            # on CPUs, dilated convolutions in bfloat16 above all.
            f"--model.widths {self.widths}: expected at least two positive multiples of 16",
        )
        require(
            len(set(self.heads)) == len(self.heads),
            f"--model.heads {' '.join(self.heads)}: each head must be given once",
        )
        require_range(self, TINY, 1, "norm_momentum", "norm_epsilon", prefix="model.")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image is prepared for the network, in training and in every later use."""

    resize: Annotated[Tuning[int | None], tyro.conf.arg(aliases=["--resize"])] = None
    """Resize each whole image to a square of this side, as the baseline does. Default: native
    resolution, in tiles."""
    intensity: Literal["stored", "percentiles"] = "stored"
    """stored: levels as in the file. percentiles: stretch each image between its 1st and 99.8th
    percentile, so that dim images look like bright ones."""
    tile: Tuning[int] = 512
    """Side of a tile, pixels. Smaller images are one tile."""
    context: Tuning[int] = 32
    """Pixels at each tile's inner borders that it shares with its neighbour, where both are
    blended."""

    def __post_init__(self) -> None:
        require_range(self, 16, ANY, "resize", "tile", prefix="preprocess.")
        require(
            0 <= 2 * self.context < self.tile,
            f"--preprocess.context {self.context} leaves nothing of --preprocess.tile {self.tile}: "
            "must be less than half of it",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to the images in training.

    Each probability is drawn once per crop. A crop's range is from its darkest to its brightest
    level.
    """

    enabled: bool = True
    """Off: plain random crops, unchanged."""
    foreground_probability: float = 0.5
    """Probability that a crop is taken around a nucleus: in sparse images most other crops have
    none."""
    flip: bool = True
    """Mirror, and rotate by multiples of 90 degrees."""
    rotation_probability: float = 0.5
    """Probability of an additional rotation of up to 45 degrees either way."""
    scale: float = 1.4
    """Largest zoom; the smallest is its reciprocal. 1: no zoom."""
    gap_probability: float = 0.0
    """Probability of white gaps in a stained image, such as vessels and tears."""
    brightness: float = 0.1
    """Largest change of brightness, as a fraction of the crop's range."""
    contrast: float = 0.2
    """Largest relative change of contrast about the mean."""
    gamma: float = 1.4
    """Largest exponent of the tone curve; the smallest is its reciprocal. 1: no change."""
    invert_probability: float = 0.0
    """Probability of a negative of a grey image: dark nuclei on white become bright nuclei on
    black."""
    hue_probability: float = 0.3
    """Probability of a change of hue and saturation."""
    hue: float = 0.06
    """Largest shift of the hue, as a fraction of the colour circle."""
    saturation: float = 0.3
    """Largest relative change of saturation."""
    stain_probability: float = 0.0
    """Probability of other stains: channels mix, and each gets a tone curve of its own."""
    stain: float = 0.3
    """Largest share of a channel that is added to or taken from another, and largest relative
    change of its exponent."""
    grey_probability: float = 0.0
    """Probability of an image without its colours."""
    tint_probability: float = 0.0
    """Probability that a grey image gets a colour."""
    light_probability: float = 0.0
    """Probability of uneven light, brighter on one side."""
    light: float = 0.4
    """Largest relative change of the light from the middle to one side."""
    blur_probability: float = 0.15
    """Probability of a Gaussian blur."""
    blur: float = 1.5
    """Largest standard deviation of the blur, pixels."""
    noise_probability: float = 0.15
    """Probability of Gaussian noise."""
    noise: float = 0.05
    """Largest standard deviation of the noise, as a fraction of the crop's range."""

    def __post_init__(self) -> None:
        set_in_vain = [
            item.name
            for item in fields(self)
            if item.name != "enabled" and getattr(self, item.name) != item.default
        ]
        require(
            self.enabled or not set_in_vain,
            f"--augment.no-enabled and --augment.{'/'.join(set_in_vain)}: the second would be "
            "ignored, give only one of them",
        )
        require_range(self, 1, ANY, "scale", "gamma", prefix="augment.")
        fractions = ["brightness", "contrast", "hue", "saturation", "stain", "light", "noise"]
        fractions += [item.name for item in fields(self) if item.name.endswith("_probability")]
        require_range(self, 0, 1, *fractions, prefix="augment.")
        require_range(self, 0, ANY, "blur", prefix="augment.")


@dataclass(frozen=True, kw_only=True)
class InstanceConfig:
    """How a prediction becomes instances."""

    threshold: float = 0.5
    """Smallest probability of a nucleus pixel."""
    min_area: int = 0
    """Smallest instance, pixels; smaller ones are dropped. Where the head `diameter` sees small or
    large nuclei, smaller or larger ones."""
    method: Literal["components", "watershed", "distance"] = "components"
    """components: touching pixels are one instance. watershed: cut instances where they narrow.
    distance: grow instances from where the head `distance` is high."""
    min_distance: int = 5
    """Smallest distance between the centres of two touching instances, pixels (watershed)."""
    marker_distance: float = 0.5
    """An instance grows from pixels whose predicted distance is larger (distance)."""
    marker_area: int = 4
    """Smallest group of such pixels, pixels (distance)."""
