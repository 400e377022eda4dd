"""What of a TIFF would give wrong pixels, because it is damaged or has several meanings."""

import math
import struct
from typing import Any

import numpy as np
import tifffile

from resunet_ray.data.raster.tiff_metadata import is_colour
from resunet_ray.errors import ImageError

# Photometric interpretations (TIFF 6.0, sections 3 to 6 and 21).
MINISWHITE, MINISBLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6

# Compressions whose decoder turns YCbCr into RGB (TIFF 6.0, section 22, and its Technical Note 2).
JPEG = 6, 7
_PHOTOMETRIC = 262
_LARGEST_PIECE = 2**28  # pixels of a tile or strip, which is decoded whole
_START = 2000  # letters of a description in which it says what it is
_FIRST_PRIVATE = 32768  # tag; those before are standard (TIFF 6.0, section 8)
_WHOLE = "bool", "uint8", "uint16", "uint32", "int8", "int16", "int32"
_STORED = *_WHOLE, "float16", "float32", "float64"


def breaks_off(file: tifffile.TiffFile) -> bool:
    """Whether pages or what describes them are missing.

    These are smaller copies of the first page, its standard tags, or a page after tifffile's last.
    tifffile leaves them out, and with them what the planes mean.
    """
    if not len(file.pages):
        return True
    first = file.pages.first
    for offset in (first.offset, *(first.subifds or ())):
        codes = _list_tags(file, offset)
        if codes is None or (offset == first.offset and codes - {tag.code for tag in first.tags}):
            return True
    file.filehandle.seek(file.pages.next_page_offset or 0)
    return bool(file.filehandle.read(file.tiff.offsetsize) != bytes(file.tiff.offsetsize))


def require_described(file: tifffile.TiffFile) -> None:
    """Refuse a file whose OME metadata leave out pages, or cannot be read.

    tifffile would leave these pages out, or not know what any page means.

    Raises:
        ImageError: they do.
    """
    first = file.pages.first
    if not file.is_ome:
        if "<OME" in first.description[:_START]:
            raise ImageError("its OME metadata are damaged. Save it again, or without them")
        return
    listed = {page.offset for series in file.series for page in series.pages if page is not None}
    if len(listed) >= len(file.pages):
        return
    left = [page.aspage() for page in file.pages if page.offset not in listed]
    size = first.imagelength, first.imagewidth
    if count := sum((page.imagelength, page.imagewidth) == size for page in left):
        raise ImageError(
            f"its OME metadata leave out {count} of its {len(file.pages)} pages: was it edited? "
            "Save it again, or without them"
        )


def _list_tags(file: tifffile.TiffFile, offset: int) -> set[int] | None:
    """Return the codes of the standard tags that a page claims, None if the file ends before."""
    tiff, handle = file.tiff, file.filehandle
    handle.seek(offset)
    start = handle.read(tiff.tagnosize)
    if len(start) < tiff.tagnosize:
        return None
    (count,) = struct.unpack(tiff.tagnoformat, start)
    size = min(count * tiff.tagsize + tiff.offsetsize, handle.size)
    entries = handle.read(size)
    if len(entries) < count * tiff.tagsize + tiff.offsetsize:
        return None
    codes = {
        struct.unpack_from(f"{tiff.byteorder}H", entries, place)[0]
        for place in range(0, count * tiff.tagsize, tiff.tagsize)
    }
    return {code for code in codes if code < _FIRST_PRIVATE}


def check_tables(path: str) -> None:
    """Refuse a TIFF that claims more tiles than it gives the offsets of.

    Raises:
        ImageError: it does.
    """
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            _check_table(page)


def check_kind(
    file: tifffile.TiffFile,
    number: int,
    *,
    lengths: dict[str, int],
    alpha: bool,
) -> bool:
    """Refuse what may be read in more than one way; return whether the pixels are RGB.

    Args:
        file: the open file.
        number: of the series.
        lengths: of its axes.
        alpha: whether the last of its samples is opacity.
    """
    series = file.series[number]
    if not {"Y", "X"} <= set(lengths) or len(lengths) != len(series.shape):
        raise ImageError(f"its axes are {series.axes}: expected rows and columns once")
    if lengths.get("C", 1) > 1 and lengths.get("S", 1) > 1:
        raise ImageError(
            f"it has {lengths['C']} channels of {lengths['S']} samples each: expected channels of "
            "one sample, or RGB. Save the channel you need as a separate file"
        )
    if file.is_ome and series.kind != "ome":
        raise ImageError(
            "its OME metadata do not describe its pages: they say another size, or are damaged. "
            "Save it again, or without them"
        )
    if np.dtype(series.dtype).name not in _STORED:
        raise ImageError(f"its values are {series.dtype}: expected one of {', '.join(_STORED)}")
    page = series.keyframe
    if _PHOTOMETRIC not in page.tags:  # tifffile takes 0 for white, libtiff for black
        raise ImageError(
            "it does not say whether 0 is black or white: it has no tag PhotometricInterpretation. "
            "Save it again in the program that shows it right"
        )
    if page.photometric == MINISWHITE and np.dtype(series.dtype).kind not in "bu":
        raise ImageError(f"its values are {series.dtype} with 0 for white: expected 0 for black")
    if page.photometric in (MINISWHITE, MINISBLACK, PALETTE):
        separate = file.is_ome and lengths.get("C", 1) == 3 and "S" not in lengths
        bytes_in_black = page.photometric == MINISBLACK and series.dtype == np.uint8
        return separate and bytes_in_black and is_colour(file, scene=number)
    if page.photometric != RGB and not (page.photometric == YCBCR and page.compression in JPEG):
        colours = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"its colours are stored as {colours}: expected RGB, grey or a palette")
    samples = lengths.get("S", lengths.get("C", 1)) - alpha
    return samples == 3


def check_page(page: Any, *, file_bytes: int) -> None:
    """Refuse a page that lacks pixels, or whose tiles or strips are too large for memory.

    Raises:
        ImageError: it does, or they are.
    """
    if page is None:
        raise ImageError(
            "some of its planes are missing or in other files: expected one file with all planes"
        )
    _check_table(page)
    end = max(
        offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    )
    end = max(end, page.dataoffsets[0] + page.keyframe.nbytes) if page.is_contiguous else end
    if end > file_bytes:
        raise ImageError(
            f"its pixels extend to byte {end} but it ends at {file_bytes}: "
            "it was cut short. Copy it again"
        )
    keyframe = page.keyframe
    if math.prod(keyframe.chunks[:2]) > _LARGEST_PIECE and not page.is_contiguous:
        raise ImageError(
            f"its pixels are compressed in pieces of {keyframe.chunks}: "
            "expected smaller ones. Save it tiled"
        )


def _check_table(page: Any) -> None:
    wanted, found = math.prod(page.keyframe.chunked), len(page.dataoffsets)
    if found < wanted:
        shape = " x ".join(map(str, page.keyframe.shape))
        raise ImageError(
            f"it claims {shape} in {wanted} tiles or strips but lists {found}: "
            "its header is damaged"
        )
