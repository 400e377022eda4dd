"""Random tones for a training crop: colours, stains, light, focus and noise of other microscopes.

All steps but the change of stains are relative to the crop's own range: a fixed step would wipe out
the nuclei of a dim image. A grey image stays grey, except for a tint.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

from resunet_ray.config import AugmentConfig
from resunet_ray.intensity import find_percentiles

# Percentiles that bound a crop's range of levels, so that a few hot pixels do not widen it.
_RANGE = (0.1, 99.9)


def recolour(
    image: UInt8[np.ndarray, "h w c"], *, config: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w c"]:
    """Return a crop with other tones.

    Args:
        image: the crop; colours change if it has three channels.
        config: how far each change may go.
        rng: source of all randomness.
    """
    if image.shape[2] == 3:
        image = _change_colours(image, config=config, rng=rng)
    low, high = find_percentiles(image, _RANGE)
    extent = max(high - low, 1.0)
    level = (np.arange(256) - low) / extent
    gamma = _draw_factor(config.gamma, rng)
    level = np.where((level > 0) & (level < 1), np.abs(level) ** gamma, level)
    middle = (float(image.mean()) - low) / extent
    level = (level - middle) * (1 + float(rng.uniform(-1, 1)) * config.contrast) + middle
    level += float(rng.uniform(-1, 1)) * config.brightness
    level = low + level * extent
    if rng.random() < config.invert_probability and is_grey(image):
        level = 255 - level
    image = cv2.LUT(image, _to_bytes(level)).reshape(image.shape)
    if rng.random() < config.light_probability:
        image = _light_unevenly(image, most=config.light, rng=rng)
    if rng.random() < config.blur_probability:
        sigma = float(rng.uniform(0.3, 1)) * config.blur
        image = cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)
    if rng.random() < config.noise_probability:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(
            float(rng.random()) * config.noise * extent
        )
        image = _to_bytes(image + noise)
    return image


def is_grey(image: UInt8[np.ndarray, "h w c"]) -> bool:
    """Whether all channels of an image are equal."""
    return bool((image == image[..., :1]).all())


def _change_colours(
    image: UInt8[np.ndarray, "h w 3"], *, config: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    hue, stain, grey, tint = (
        float(rng.random()) < probability
        for probability in (
            config.hue_probability,
            config.stain_probability,
            config.grey_probability,
            config.tint_probability,
        )
    )
    if is_grey(image):
        return _tint(image, rng=rng) if tint else image
    if hue and config.hue:
        image = _shift_hue(image, hue=config.hue, saturation=config.saturation, rng=rng)
    if stain:
        image = _change_stains(image, most=config.stain, rng=rng)
    if grey:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return image


def _shift_hue(
    image: UInt8[np.ndarray, "h w 3"], *, hue: float, saturation: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Shift the hue, in shares of the colour circle, and scale the saturation."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turn = np.uint8(round(float(rng.uniform(-1, 1)) * hue * 256) % 256)
    factor = 1 + float(rng.uniform(-1, 1)) * saturation
    hsv[..., 0] += turn
    hsv[..., 1] = cv2.convertScaleAbs(hsv[..., 1], alpha=factor)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def _change_stains(
    image: UInt8[np.ndarray, "h w 3"], *, most: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Mix the channels and bend their tone curves, as other stains and scanners would.

    The shares of each channel add up to 1, so that white stays white.
    """
    mix = np.eye(3) + rng.uniform(-most, most, (3, 3))
    mixed = np.asarray(cv2.transform(image, mix / mix.sum(axis=1, keepdims=True)))
    gammas = [_draw_factor(1 + most, rng) for _ in range(3)]
    curves = np.stack([(np.arange(256) / 255) ** gamma * 255 for gamma in gammas], axis=1)
    return np.asarray(cv2.LUT(mixed, _to_bytes(curves)[None]))


def _tint(
    image: UInt8[np.ndarray, "h w 3"], *, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Give a grey image a colour: its channels keep the dark end and reach less of the bright."""
    share = rng.uniform(0, 1, 3)
    share /= share.max()
    return _to_bytes(image * share)


def _light_unevenly(
    image: UInt8[np.ndarray, "h w c"], *, most: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w c"]:
    """Multiply by a plane that falls or rises across the crop in a random direction."""
    height, width = image.shape[:2]
    angle, change = rng.uniform(0, 2 * np.pi), rng.uniform(0, most)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.sin(angle)
    across = np.linspace(-1, 1, width, dtype=np.float32) * np.cos(angle)
    plane = (1 + change * (down + across)).astype(np.float32)
    return _to_bytes(image * plane[..., None])


def _draw_factor(most: float, rng: np.random.Generator) -> float:
    """Draw a factor from 1/most to most; larger and smaller are equally likely."""
    return float(np.exp(rng.uniform(-1, 1) * np.log(most)))


def _to_bytes(level: np.ndarray) -> UInt8[np.ndarray, "..."]:
    rounded: UInt8[np.ndarray, ...] = np.clip(np.rint(level), 0, 255).astype(np.uint8)
    return rounded
