"""Rows of instances/: the nuclei of regions as GeoParquet."""

import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from resunet_ray.schema import INSTANCES

_GEOMETRY = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": None,  # pixels of the image, not places on Earth
            "covering": {
                "bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}
            },
        }
    },
}
"""GeoParquet 1.1.0, `geo` metadata."""

INSTANCES_SCHEMA = INSTANCES.with_metadata(
    {**(INSTANCES.metadata or {}), b"geo": json.dumps(_GEOMETRY).encode()}
)


def flatten_instances(regions: pa.Table) -> pa.Table:
    """Return the nuclei of some regions, schema INSTANCES."""
    parents = pc.list_parent_indices(regions["instances"])
    flat = pc.list_flatten(regions["instances"])
    table = pa.table({field.name: pc.struct_field(flat, field.name) for field in flat.type})
    of = regions.select(["image_id", "run_id", "mpp", "bundle_digest", "config_digest"]).take(
        parents
    )
    polygons = shapely.from_wkb(table["polygon"].to_numpy())
    bounds = shapely.bounds(polygons) if len(polygons) else np.empty((0, 4))
    mpp = of["mpp"].to_numpy().astype(np.float64)
    places = zip(
        *(of[name].to_pylist() for name in ("image_id", "bundle_digest", "config_digest")),
        np.rint(table["centroid_y"].to_numpy() * 100).astype(np.int64).tolist(),
        np.rint(table["centroid_x"].to_numpy() * 100).astype(np.int64).tolist(),
        strict=True,
    )
    columns = {
        "instance_id": [
            str(uuid.uuid5(uuid.NAMESPACE_URL, ":".join(map(str, place)))) for place in places
        ],
        "image_id": of["image_id"],
        **{name: of[name] for name in ("run_id", "bundle_digest", "config_digest")},
        "geometry": table["polygon"],
        "area_um2": pa.array(table["area_px"].to_numpy() * mpp**2, from_pandas=True),
        "perimeter_um": pa.array(table["perimeter_px"].to_numpy() * mpp, from_pandas=True),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(column) for column in bounds.T], fields=list(INSTANCES.field("bbox").type)
        ),
        **{
            name: table[name]
            for name in (
                "centroid_y",
                "centroid_x",
                "area_px",
                "eccentricity",
                "score",
                "touches_edge",
            )
        },
    }
    return pa.table({name: columns[name] for name in INSTANCES.names}, schema=INSTANCES_SCHEMA)
