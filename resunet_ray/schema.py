"""The Arrow schemas of every table that this package writes."""

import pyarrow as pa

SCHEMA_VERSION = "1"


def _versioned(fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION})


DATASET = _versioned(
    [
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("image", pa.binary()),  # encoded: PNG, or the source's own 8-bit JPEG or PNG
        ("mask", pa.binary()),  # PNG, 0 or 255
        ("labels", pa.binary()),  # PNG, 16 bit, 0 is background; null where instances are unknown
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mpp", pa.float64()),
        ("modality", pa.string()),
        ("source_uri", pa.string()),
    ]
)
"""One labelled image a row: what training and evaluation read."""

REJECTS = _versioned(
    [
        ("image_id", pa.string()),
        ("source_uri", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row for each image that `prepare` found and did not take."""

SCORES = _versioned(
    [
        ("image_id", pa.string()),
        ("modality", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("tp", pa.int64()),
        ("fp", pa.int64()),
        ("fn", pa.int64()),
        ("tn", pa.int64()),
        ("accuracy", pa.float64()),
        ("f1", pa.float64()),
        ("jaccard", pa.float64()),
        ("recall", pa.float64()),
        ("precision", pa.float64()),
        ("num_true", pa.int64()),
        ("num_found", pa.int64()),
        ("ap", pa.list_(pa.float64())),  # at IoU 0.50, 0.55 … 0.95
        ("pq", pa.float64()),
        ("aji", pa.float64()),
    ]
)
"""One scored image a row; the instance columns are null where the data set knows no instances."""
