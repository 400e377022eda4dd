"""The benchmark of faults finds what it looks for."""

from pathlib import Path

import pyarrow as pa
from benchmarks.faults import compare_outputs

from resunet_ray import storage


def write(output: Path, *, images: dict[str, str], regions: str, instances: str) -> str:
    """Write tables with the columns that are compared; each letter is the id of a row."""
    tables = {
        "images": pa.table({"image_id": list(images), "status": list(images.values())}),
        "regions": pa.table({"region_id": list(regions)}),
        "instances": pa.table({"instance_id": list(instances)}),
    }
    for name, table in tables.items():
        for row in range(table.num_rows):  # rows may be spread over files
            storage.write_table(f"{output}/{name}/run/{row}.parquet", table.slice(row, 1))
    return str(output)


def test_every_row_that_is_not_as_it_should_be_is_counted(tmp_path: Path) -> None:
    good = {"a": "ok", "b": "ok", "c": "empty"}
    right = write(tmp_path / "right", images=good, regions="abcd", instances="abcdef")
    same = write(tmp_path / "same", images=good, regions="dcba", instances="fedcba")
    assert set(compare_outputs(same, right).values()) == {0}
    bad = {"a": "failed", "b": "partial"}
    wrong = write(tmp_path / "wrong", images=bad, regions="abbbcd", instances="abcdxyz")
    assert compare_outputs(wrong, right) == {"lost": 3, "doubled": 2, "blamed": 2, "other": 3}
