"""Labelled images of any known layout → checked Parquet shards. Every source is decoded once, here.

    sources ─► check, on all CPUs ─► staging/*.parquet ─► duplicates, splits
        ─► SPLIT-00000.parquet … ─► dataset.json

`dataset.json` is written last: a data set without it is unfinished.
"""

import hashlib
import json
import logging
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from resunet_ray import storage
from resunet_ray.cluster import connect, is_lost, this_node
from resunet_ray.config import PrepareConfig
from resunet_ray.config.layouts import parse_layout
from resunet_ray.data import splits
from resunet_ray.data.check import LEFT_OUT, CheckedImage, Reject, blame_source, check_source
from resunet_ray.data.dataset import DATASET_FILE
from resunet_ray.data.metadata import Metadata, read_metadata, require_known
from resunet_ray.data.names import PassedOver
from resunet_ray.data.outcome import PreparationResult, find_swapped, require_few_rejects
from resunet_ray.data.raster.planes import Selection
from resunet_ray.data.sources import Source, list_sources
from resunet_ray.errors import InputError
from resunet_ray.schema import DATASET, REJECTS
from resunet_ray.storage import crashes
from resunet_ray.tasks import run_tasks

logger = logging.getLogger(__name__)

_IMAGES_PER_TASK = 64
_SHARD_PIXELS = 2**26  # their image, mask and labels take 400 MB while a file is written
_STAGING = "_staging"
_CHECKED = pa.schema(
    [
        *DATASET.remove(DATASET.get_field_index("split")),
        ("foreground_fraction", pa.float64()),
        ("digest", pa.string()),
        ("truth_digest", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)


def prepare(config: PrepareConfig, *, lease: storage.Lease | None = None) -> PreparationResult:
    """Write the data set. Ray starts only after the input has been listed and the split drawn.

    Args:
        config: of the data set.
        lease: held by the caller, over a place around the output; None: one is taken.

    Raises:
        InputError: an input is missing, the output already holds a data set, or more images are
            rejected than allowed.
        LeaseError: another run is writing to the output.
        RunError: the lease was lost.
    """
    # Absolute, because tasks run in other working directories.
    config = replace(config, output=storage.absolute(config.output).rstrip("/"))
    with storage.hold_output(config, config.output, held=lease) as held:
        return _prepare(config, held)


def _prepare(config: PrepareConfig, lease: storage.Lease) -> PreparationResult:
    _require_free(config.output)
    layout = parse_layout(config.layout) if config.layout else None
    cache, passed_over = storage.Cache.of(config), PassedOver()
    sources = list_sources(config.input, cache=cache, layout=layout, passed_over=passed_over)
    metadata = read_metadata(config.metadata, group_column=config.group_column)
    # The split is drawn from all names, so that rejecting an image does not reshuffle the others.
    names = [source.image_id for source in sources if source.reason not in LEFT_OUT]
    require_known(metadata, names, source=config.metadata)
    split_of = _split(sorted(set(names)), config=config, metadata=metadata)
    logger.info("found %d labelled images", len(sources))
    if passed_over.kinds:
        logger.info("passed over: %s", passed_over)
    staging = storage.join(config.output, _STAGING)
    storage.delete_folder(staging)
    connect()
    checked = _check_all(sources, config=config, metadata=metadata, staging=staging)
    checked = _reject_duplicates(checked)
    rejects = checked[checked["reason"].notna()]
    lease.check()
    storage.write_table(
        storage.join(config.output, "rejects.parquet"),
        pa.Table.from_pylist(rejects[REJECTS.names].to_dict("records"), schema=REJECTS),
    )
    require_few_rejects(rejects, total=len(checked), config=config)
    accepted = checked[checked["reason"].isna() & checked["image_id"].isin(split_of.keys())]
    accepted = accepted.assign(split=accepted["image_id"].map(split_of))
    shards = _write_shards(accepted, config=config, staging=staging)
    counts = {
        str(split): int(count)
        for split, count in accepted["split"].value_counts().sort_index().items()
    }
    lease.check()
    _commit(accepted, shards=shards, counts=counts, config=config)
    storage.delete_folder(staging)
    reasons, kinds = dict(Counter(rejects["reason"])), dict(passed_over.kinds)
    warnings = find_swapped(accepted["foreground_fraction"])
    return PreparationResult(len(accepted), len(rejects), counts, reasons, kinds, warnings)


def _require_free(output: str) -> None:
    if storage.exists(storage.join(output, DATASET_FILE)):
        raise InputError(
            f"{output} already holds a data set ({DATASET_FILE}): "
            "choose another --output or delete it first"
        )


def _check_all(
    sources: list[Source],
    *,
    config: PrepareConfig,
    metadata: Mapping[str, Metadata],
    staging: str,
) -> pd.DataFrame:
    """Check every image on the cluster.

    The result has no pixels. Rows with pixels wait in `staging`, one file per task.
    """
    tasks = [
        sources[start : start + _IMAGES_PER_TASK]
        for start in range(0, len(sources), _IMAGES_PER_TASK)
    ]
    session = uuid.uuid4().hex

    def check(source: Source) -> CheckedImage | Reject:
        return check_source(
            source,
            max_pixels=config.max_pixels,
            known=metadata.get(source.image_id, Metadata()),
            cache=storage.Cache.of(config),
            selection=Selection.of(config),
        )

    def check_task(number: int) -> pa.Table:
        notes = crashes.Notes(staging, session, node=this_node(), is_lost=is_lost)
        checked = notes.work_through(number, tasks[number], check, blame=blame_source)
        table = pa.Table.from_pylist([vars(image) for image in checked], schema=_CHECKED)
        storage.write_table(
            storage.join(staging, f"{number:06d}.parquet"),
            table,
            rows_per_group=config.rows_per_group,
        )
        light = table.drop_columns(["image", "mask", "labels"])
        return light.append_column("task", pa.array([number] * len(light), pa.int64()))

    frame: pd.DataFrame = run_tasks(
        check_task, count=len(tasks), total=len(sources), what="images checked"
    ).to_pandas()
    frame["position"] = frame.groupby("task").cumcount()
    return frame.sort_values(["task", "position"], ignore_index=True)


def _reject_duplicates(checked: pd.DataFrame) -> pd.DataFrame:
    """Keep the first by name of images with equal pixels: a copy in another split would leak."""
    readable = checked[checked["reason"].isna()]
    first = readable.groupby("digest")["image_id"].transform("first")
    copies = readable.index[readable.duplicated("digest")]
    checked.loc[copies, "reason"] = "duplicate"
    checked.loc[copies, "message"] = (
        checked.loc[copies, "source_uri"] + ": its pixels equal those of " + first.loc[copies]
    )
    return checked


def _split(
    image_ids: list[str], *, config: PrepareConfig, metadata: Mapping[str, Metadata]
) -> dict[str, str]:
    if config.split == "baseline":
        return splits.split_as_baseline(image_ids)
    if config.split == "file":
        assert config.split_file is not None, "checked by PrepareConfig"
        return splits.split_from_lists(
            image_ids, lists=splits.read_lists(config.split_file), source=config.split_file
        )
    groups = None
    if config.group_column is not None:
        groups = {name: known.group for name, known in metadata.items() if known.group is not None}
        if missing := [name for name in image_ids if name not in groups]:
            raise InputError(
                f"{config.metadata} gives no {config.group_column} for {len(missing)} images, "
                f"{missing[0]} being the first"
            )
    return splits.split_by_fraction(
        image_ids,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.seed,
        groups=groups,
    )


def _write_shards(
    accepted: pd.DataFrame, *, config: PrepareConfig, staging: str
) -> dict[str, list[int]]:
    """Write each split's shards from the staged rows; return each file's rows per row group."""
    plan = []
    for split, rows in accepted.groupby("split", sort=True):
        pixels = (rows["height"] * rows["width"]).cumsum()
        for number, (_, part) in enumerate(
            rows.groupby(np.arange(len(rows)) // config.rows_per_shard + pixels // _SHARD_PIXELS)
        ):
            plan.append(
                (f"{split}-{number:05d}.parquet", str(split), part[["task", "position"]].to_numpy())
            )

    def write_shard(number: int) -> pa.Table:
        name, split, rows = plan[number]
        parts = []
        for task in np.unique(rows[:, 0]):
            table = storage.read_table(storage.join(staging, f"{task:06d}.parquet"))
            parts.append(table.take(pa.array(rows[rows[:, 0] == task, 1])))
        table = pa.concat_tables(parts)
        table = (
            table.append_column("split", pa.array([split] * len(table)))
            .select(DATASET.names)
            .cast(DATASET)
        )
        storage.write_table(
            storage.join(config.output, name), table, rows_per_group=config.rows_per_group
        )
        return pa.table({"name": [name], "rows": [len(table)]})

    written = run_tasks(
        write_shard, count=len(plan), total=len(plan), what="shards written"
    ).to_pylist()
    size = config.rows_per_group
    return {
        row["name"]: [
            min(size, int(row["rows"]) - start) for start in range(0, int(row["rows"]), size)
        ]
        for row in sorted(written, key=lambda row: str(row["name"]))
    }


def _commit(
    accepted: pd.DataFrame,
    *,
    shards: dict[str, list[int]],
    counts: dict[str, int],
    config: PrepareConfig,
) -> None:
    # Everything that training learns from.
    columns = ["image_id", "split", "digest", "truth_digest", "mpp", "modality"]
    rows = accepted.sort_values("image_id")[columns].to_csv(index=False)
    mpp = accepted["mpp"].dropna().unique()
    content = {
        "digest": hashlib.sha256(rows.encode()).hexdigest(),
        "mpp": float(mpp[0]) if len(mpp) == 1 and accepted["mpp"].notna().all() else None,
        "splits": counts,
        "shards": shards,
        "config": asdict(config),
    }
    storage.write_bytes(
        storage.join(config.output, DATASET_FILE), json.dumps(content, indent=1).encode()
    )
