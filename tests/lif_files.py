"""LIF files written byte by byte."""

import struct
from pathlib import Path

import numpy as np

_DIMENSIONS = {"x": 1, "y": 2, "z": 3, "t": 4, "m": 10, "l": 5}


def _element(
    name: str,
    values: np.ndarray,
    axes: str,
    *,
    dyes: tuple[str, ...],
    tags: tuple[int, ...],
    microns: tuple[float, float],
) -> str:
    channel_axis = next((axis for axis in "cs" if axis in axes), None)
    count = values.shape[axes.index(channel_axis)] if channel_axis else 1
    step = values.strides[axes.index(channel_axis)] if channel_axis else 0
    channels = "".join(
        f'<ChannelDescription DataType="{int(values.dtype.kind == "f")}" '
        f'ChannelTag="{tags[number] if tags else 0}" Resolution="{8 * values.itemsize}" '
        'NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" LUTName="Green" IsLUTInverted="0" '
        f'BytesInc="{number * step}" BitInc="0">'
        + (
            f"<ChannelProperty><Key>DyeName</Key><Value>{dyes[number]}</Value></ChannelProperty>"
            if dyes
            else ""
        )
        + "</ChannelDescription>"
        for number in range(count)
    )
    dimensions = "".join(
        f'<DimensionDescription DimID="{_DIMENSIONS[axis]}" NumberOfElements="{size}" Origin="0" '
        f'Length="{(size - 1) * (microns[axis != "y"] * 1e-6)}" Unit="m" '
        f'BytesInc="{stride}" BitInc="0"/>'
        for axis, size, stride in zip(axes, values.shape, values.strides, strict=True)
        if axis in _DIMENSIONS
    )
    return (
        f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
        f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
        f'<Memory Size="{values.nbytes}" MemoryBlockID="Block_{name}"/></Element>'
    )


def draw_lif(
    path: Path,
    images: dict[str, tuple[np.ndarray, str]],
    *,
    dyes: tuple[str, ...] = (),
    tags: tuple[int, ...] = (),
    microns: tuple[float, float] = (0.5, 0.25),
) -> str:
    """Write a LIF of version 2 with values in C order under the axes that are named.

    Args:
        path: of the file.
        images: values and names of the axes of each, among x, y, z, t, c, m, l and s.
        dyes: of the channels.
        tags: of the channels: 1 to 3 for red, green and blue.
        microns: height and width of a pixel.

    Returns:
        The path.
    """
    elements = "".join(
        _element(name, values, axes, dyes=dyes, tags=tags, microns=microns)
        for name, (values, axes) in images.items()
    )
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="file"><Children>'
        f"{elements}</Children></Element></LMSDataContainerHeader>"
    )
    content = struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml))
    content += xml.encode("utf-16-le")
    for name, (values, _) in images.items():
        block = f"Block_{name}"
        content += struct.pack("<IIBQ", 0x70, 2 * len(block) + 14, 0x2A, values.nbytes)
        content += struct.pack("<BI", 0x2A, len(block)) + block.encode("utf-16-le")
        content += values.tobytes()
    path.write_bytes(content)
    return str(path)
