"""The Arrow schemas of every table that this package writes."""

import pyarrow as pa

SCHEMA_VERSION = "1"

_TEXTS = pa.list_(pa.string())
_POINTS = pa.list_(pa.list_(pa.float64(), 2))


def _versioned(fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION})


DATASET = _versioned(
    [
        ("image_id", pa.string()),
        ("split", pa.string()),
        ("image", pa.binary()),  # encoded: PNG, or the original 8-bit JPEG or PNG
        ("mask", pa.binary()),  # PNG, 0 or 255
        ("labels", pa.binary()),  # 16-bit PNG, 0 is background; null if instances are unknown
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mpp", pa.float64()),
        ("modality", pa.string()),
        ("source_uri", pa.string()),
    ]
)
"""One row per labelled image. Training and evaluation read this table."""

REJECTS = _versioned(
    [
        ("image_id", pa.string()),
        ("source_uri", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
    ]
)
"""One row per image that `prepare` found and rejected."""

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
"""One row per scored image. The instance columns are null if the data set has no instances."""

OUTCOMES = _versioned(
    [
        ("image_id", pa.string()),
        ("found", pa.int64()),  # true; a predicted nucleus has an IoU above 0.5
        ("missed", pa.int64()),  # true; no predicted nucleus has an IoU above 0.1
        ("merged", pa.int64()),  # true; mostly in the same predicted nucleus as another
        ("split", pa.int64()),  # true; two or more predicted nuclei lie mostly in it
        ("inexact", pa.int64()),  # true; the best IoU is between 0.1 and 0.5
        ("invented", pa.int64()),  # predicted; no true nucleus has an IoU above 0.1
    ]
)
"""One row per scored image, in the order of scores.parquet: the number of nuclei of each kind.

A true nucleus counts once, as the first of found, merged, split and inexact that applies. The table
is written if the data set has instances; for an image without them the counts are null.
"""

_SOURCE: list[tuple[str, pa.DataType]] = [
    ("image_id", pa.string()),  # 32 hex digits, a digest of location, member and fingerprint
    ("image_uri", pa.string()),
    ("member", pa.string()),  # path within an archive
    ("member_offset", pa.int64()),  # byte at which a tar member begins
    ("source_bytes", pa.int64()),
    ("source_etag", pa.string()),
    ("source_mtime", pa.timestamp("us", tz="UTC")),
    ("mask_uri", pa.string()),  # the true mask, if there is one
    ("mpp", pa.float64()),
    ("mpp_source", pa.string()),  # argument, manifest, sidecar or metadata; null if mpp is
]
_ERROR: list[tuple[str, pa.DataType]] = [
    ("error_stage", pa.string()),  # list, open, read, decode, mask, model, post or crash
    ("error_type", pa.string()),
    ("error_message", pa.string()),
]
_SECONDS: list[tuple[str, pa.DataType]] = [
    ("read_seconds", pa.float64()),
    ("model_seconds", pa.float64()),
    ("post_seconds", pa.float64()),
]
_ORIGIN: list[tuple[str, pa.DataType]] = [
    ("run_id", pa.string()),
    ("bundle_digest", pa.string()),
    ("config_digest", pa.string()),
    ("code_version", pa.string()),
]

_PLACE: list[tuple[str, pa.DataType]] = [
    ("region_index", pa.int32()),
    ("num_regions", pa.int32()),  # in the whole image; 0 for a slide with nothing to segment
    ("y", pa.int64()),  # top left corner, level-0 pixels
    ("x", pa.int64()),
    ("height", pa.int64()),  # null if the image has not been decoded
    ("width", pa.int64()),
    ("scale_to_level0", pa.float64()),  # level-0 pixels per pixel that the network sees
    ("slide_height", pa.int64()),  # level-0 pixels; null if it is not a slide
    ("slide_width", pa.int64()),
    ("format", pa.string()),
    ("level_low", pa.float64()),  # image-wide intensity that becomes 0; null if not measured
    ("level_high", pa.float64()),  # image-wide intensity that becomes 255
    ("tissue_fraction", pa.float64()),
    ("warnings", _TEXTS),  # mpp_not_believed, mpp_missing, no_tissue, view_unreadable, fluorescence
]

PLAN = _versioned([*_SOURCE, *_PLACE, ("tissue", pa.binary()), ("attempt", pa.int32()), *_ERROR])
"""One row per region to segment. A row group is a chunk: what one task takes.

The error columns hold what went wrong while planning.
"""

INSTANCE = pa.struct(
    [
        ("centroid_y", pa.float64()),  # level-0 pixels; the centre of the first pixel is at 0.5
        ("centroid_x", pa.float64()),
        ("area_px", pa.float64()),
        ("perimeter_px", pa.float64()),
        ("eccentricity", pa.float64()),
        ("score", pa.float64()),  # mean probability of its pixels
        ("touches_edge", pa.bool_()),
        ("polygon", pa.binary()),  # WKB, level-0 pixels, along pixel edges
    ]
)

REGIONS = _versioned(
    [
        ("region_id", pa.string()),
        *_SOURCE,
        *_PLACE,
        ("mask", pa.binary()),  # PNG, 0 or 255
        ("labels", pa.binary()),  # 16-bit PNG, on request
        ("probability", pa.binary()),  # PNG, probability × 255, on request
        ("instances", pa.list_(INSTANCE)),
        ("num_instances", pa.int64()),
        ("neighbours", _POINTS),  # y and x of nuclei seen here that belong to other regions
        ("pixels", pa.int64()),
        ("foreground_pixels", pa.int64()),
        ("uncertain_pixels", pa.int64()),
        ("confidence_sum", pa.float64()),
        ("entropy_sum", pa.float64()),
        ("grey_sum", pa.float64()),
        ("grey_square_sum", pa.float64()),
        ("laplacian_square_sum", pa.float64()),
        ("tp", pa.int64()),
        ("fp", pa.int64()),
        ("fn", pa.int64()),
        ("tn", pa.int64()),
        ("status", pa.string()),  # ok, failed or empty
        *_ERROR,
        ("attempt", pa.int32()),
        *_SECONDS,
        *_ORIGIN,
    ]
)
"""One row per region, with everything found in it. One file is one commit."""

IMAGES = _versioned(
    [
        *_SOURCE,
        ("format", pa.string()),
        ("is_slide", pa.bool_()),  # whether it was read in parts
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("num_regions", pa.int64()),
        ("num_regions_failed", pa.int64()),
        ("tissue_fraction", pa.float64()),
        ("status", pa.string()),  # ok, partial, failed or empty
        ("num_nuclei", pa.int64()),
        ("nuclei_per_mm2", pa.float64()),
        ("median_nucleus_area_um2", pa.float64()),
        ("foreground_fraction", pa.float64()),
        ("mean_confidence", pa.float64()),
        ("mean_entropy", pa.float64()),  # bits per pixel
        ("uncertain_fraction", pa.float64()),
        ("seam_disagreement", pa.float64()),
        ("focus_score", pa.float64()),
        ("qc_status", pa.string()),  # pass, warn or fail
        ("qc_reasons", _TEXTS),
        ("accuracy", pa.float64()),
        ("f1", pa.float64()),
        ("jaccard", pa.float64()),
        ("recall", pa.float64()),
        ("precision", pa.float64()),
        *_ERROR,
        ("attempt", pa.int32()),
        *_SECONDS,
        ("finished_at", pa.timestamp("us", tz="UTC")),
        *_ORIGIN,
    ]
)
"""One row per image. An image is done once its row is here."""

INSTANCES = _versioned(
    [
        ("instance_id", pa.string()),
        ("image_id", pa.string()),
        ("run_id", pa.string()),
        ("bundle_digest", pa.string()),
        ("config_digest", pa.string()),
        ("geometry", pa.binary()),
        ("centroid_y", pa.float64()),
        ("centroid_x", pa.float64()),
        ("area_px", pa.float64()),
        ("area_um2", pa.float64()),
        ("perimeter_um", pa.float64()),
        ("eccentricity", pa.float64()),
        ("score", pa.float64()),
        ("touches_edge", pa.bool_()),
        ("bbox", pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])),
    ]
)
"""One row per nucleus, as GeoParquet."""

TRIALS = _versioned(
    [
        ("trial", pa.int64()),
        ("name", pa.string()),
        ("status", pa.string()),  # completed, stopped, failed or unfinished
        ("reason", pa.string()),
        ("monitor", pa.string()),
        ("score", pa.float64()),  # best validation score of `monitor`
        ("epoch", pa.int64()),  # epoch of that validation
        ("epochs", pa.int64()),  # epochs trained as of the last validation
        ("loss", pa.float64()),
        ("accuracy", pa.float64()),
        ("f1", pa.float64()),
        ("jaccard", pa.float64()),
        ("recall", pa.float64()),
        ("precision", pa.float64()),
        ("seconds", pa.float64()),
        ("started_at", pa.string()),
        ("finished_at", pa.string()),
        ("bundle", pa.string()),
    ]
)
"""One row per trial of a sweep.

A column `config.FIELD`, of the field's own type, follows for each searched field.
"""
