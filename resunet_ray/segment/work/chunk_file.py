"""The file of a chunk: its regions, and the images that have none because they changed.

An image that was replaced after it was listed leaves only its id, in the metadata of the file.
"""

import json
from collections.abc import Collection, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from resunet_ray import storage
from resunet_ray.records import to_table
from resunet_ray.schema import REGIONS
from resunet_ray.segment.rows import Region

_CHANGED = b"changed"


def write_regions(uri: str, regions: Sequence[Region]) -> None:
    """Write the regions of a chunk, without those of images of which one has changed."""
    changed = {region.image.image_id for region in regions if region.status == "changed"}
    kept = (region for region in regions if region.image.image_id not in changed)
    _write(uri, to_table(kept, REGIONS), changed=changed)


def _write(uri: str, regions: pa.Table, *, changed: Collection[str]) -> None:
    noted = {**(regions.schema.metadata or {}), _CHANGED: json.dumps(sorted(changed))}
    storage.write_table(uri, regions.replace_schema_metadata(noted), rows_per_group=64)


def read_changed(regions: pa.Table) -> set[str]:
    """Return the ids of the images of a chunk that changed."""
    return set(json.loads((regions.schema.metadata or {}).get(_CHANGED, b"[]")))


def withdraw_changed(uri: str, ids: Collection[str]) -> None:
    """Take out the regions of images of which another chunk says that they changed."""
    regions = storage.read_table(uri)
    theirs = pc.is_in(regions["image_id"], value_set=pa.array(sorted(ids), pa.string()))
    if found := set(regions["image_id"].filter(theirs).to_pylist()):
        _write(uri, regions.filter(pc.invert(theirs)), changed=read_changed(regions) | found)
