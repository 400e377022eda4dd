"""QuPath's GeoJSON: one detection for each nucleus, streamed into gzipped files that it imports.

A feature is an object of QuPath (`qupath.lib.io.PathObjectTypeAdapters`): `id` is a UUID,
`properties.objectType` its kind, `classification` and `measurements` what QuPath shows of it.
Coordinates are pixels of the largest level.
"""

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import shapely

Feature = dict[str, Any]

_CLASS = {"name": "Nucleus", "color": [200, 60, 60]}
_MEASUREMENTS = {
    "area_px": "Area px^2",
    "area_um2": "Area µm^2",
    "perimeter_um": "Perimeter µm",
    "eccentricity": "Eccentricity",
    "score": "Mean probability",
}


def build_features(rows: Iterable[dict[str, Any]]) -> Iterator[Feature]:
    """Build features from rows of instances/."""
    for row in rows:
        yield {
            "type": "Feature",
            "id": row["instance_id"],
            "geometry": shapely.geometry.mapping(shapely.from_wkb(row["geometry"])),
            "properties": {
                "objectType": "detection",
                "classification": _CLASS,
                "measurements": {
                    title: row[name]
                    for name, title in _MEASUREMENTS.items()
                    if row[name] is not None
                },
            },
        }


def write_features(
    features: Iterable[Feature], *, folder: Path, stem: str, most: int
) -> list[Path]:
    """Write NAME.geojson.gz and, if one file is not enough, NAME.part-2.geojson.gz and so on.

    Args:
        features: of one image.
        folder: on this machine.
        stem: NAME.
        most: features in a file.
    """
    paths: list[Path] = []
    iterator = iter(features)
    while (first := next(iterator, None)) is not None or not paths:
        part = f".part-{len(paths) + 1}" if paths else ""
        paths.append(folder / f"{stem}{part}.geojson.gz")
        held = (
            [] if first is None else itertools.chain([first], itertools.islice(iterator, most - 1))
        )
        # Without a time in it, the same nuclei give the same bytes.
        with gzip.GzipFile(paths[-1], "wb", mtime=0) as file:
            file.write(b'{"type": "FeatureCollection", "features": [')
            for number, feature in enumerate(held):
                file.write((b",\n" if number else b"\n") + json.dumps(feature).encode())
            file.write(b"\n]}\n")
        if first is None:
            break
    return paths
