"""Uncompressed values of a TIFF that lie in one piece, of which only the rows needed are read."""

import math

import numpy as np
import tifffile

from resunet_ray.data.raster.indexing import number_places, picked_shape, to_ranges


class Contiguous:
    """An array that is indexed by numbers and ranges; zarr would read whole planes of it."""

    def __init__(self, file: tifffile.TiffFile, level: tifffile.TiffPageSeries, axes: str) -> None:
        """Read nothing yet.

        Args:
            file: open for as long as the array is read.
            level: whose values lie in one piece.
            axes: one letter for each of its axes, of which Y is indexed by a range.
        """
        self._file, self._offset, self._shape = file.filehandle, level.dataoffset, level.shape
        self._dtype = np.dtype(level.dtype).newbyteorder(file.byteorder)
        self._row = axes.index("Y")

    def __getitem__(self, index: tuple[int | slice, ...]) -> np.ndarray:
        """Return part of the array; the rows are a range."""
        outer, rows, inner = index[: self._row], index[self._row], index[self._row + 1 :]
        assert isinstance(rows, slice), "rows are a range"
        shape = (rows.stop - rows.start, *self._shape[self._row + 1 :])
        lengths = self._shape[: self._row]
        found = []
        for plane in number_places(to_ranges(outer, lengths), lengths):
            first = (plane * self._shape[self._row] + rows.start) * math.prod(shape[1:])
            self._file.seek(self._offset + first * self._dtype.itemsize)
            content = self._file.read(math.prod(shape) * self._dtype.itemsize)
            found.append(np.frombuffer(content, self._dtype).reshape(shape))
        kept = picked_shape(outer, lengths)
        whole = np.stack(found).reshape(*kept, *shape)
        return whole[(*[slice(None)] * (len(kept) + 1), *inner)]
