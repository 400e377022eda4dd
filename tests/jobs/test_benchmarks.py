"""The benchmarks of faults and of overhead count right."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from benchmarks.config import BenchmarkConfig
from benchmarks.faults import compare_outputs
from benchmarks.overhead import benchmark_overhead

from resunet_ray import storage
from resunet_ray.data.synthetic import write_images


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


def test_the_overhead_of_images_is_the_sum_of_its_stages(tmp_path: Path, bundle_uri: str) -> None:
    """Two images of 96 × 112 pixels and a file that is none."""
    write_images(str(tmp_path / "data"), count=2, height=96, width=112, seed=0)
    (tmp_path / "data" / "images" / "text.png").write_bytes(b"hello")
    result = benchmark_overhead(
        BenchmarkConfig(
            what="overhead",
            output=str(tmp_path / "out"),
            data=str(tmp_path / "data" / "images"),
            bundle=bundle_uri,
        )
    )
    assert (result["images"], result["megapixels"]) == (2, 0.02)
    table = pd.read_csv(tmp_path / "out" / "overhead.csv").set_index("stage").squeeze()
    assert (table > 0).all()
    stages = table.loc[:"total outside the network"].iloc[:-1]
    assert {"decode", "instances", "measures and polygons"} <= set(stages.index)
    assert table["total outside the network"] == pytest.approx(stages.sum())
