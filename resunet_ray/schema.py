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

_SOURCE: list[tuple[str, pa.DataType]] = [
    ("image_id", pa.string()),  # 32 hexadecimal digits of location, member and fingerprint
    ("image_uri", pa.string()),
    ("member", pa.string()),  # name within an archive
    ("member_offset", pa.int64()),  # where a tar member begins
    ("source_bytes", pa.int64()),
    ("source_etag", pa.string()),
    ("source_mtime", pa.timestamp("us", tz="UTC")),
    ("mask_uri", pa.string()),  # a true mask
    ("mpp", pa.float64()),
    ("mpp_source", pa.string()),  # argument, manifest, sidecar, metadata; null where mpp is
]
_ERROR: list[tuple[str, pa.DataType]] = [
    ("error_stage", pa.string()),  # list, open, read, decode, mask, model, post, crash
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
    ("num_regions", pa.int32()),  # of the image; 0: a slide on which there is nothing to read
    ("y", pa.int64()),  # level-0 pixels
    ("x", pa.int64()),
    ("height", pa.int64()),  # null: an image that is not yet decoded
    ("width", pa.int64()),
    ("scale_to_level0", pa.float64()),  # level-0 pixels to a pixel that the network sees
    ("slide_height", pa.int64()),  # level-0 pixels; null: no slide
    ("slide_width", pa.int64()),
    ("format", pa.string()),
    (
        "level_low",
        pa.float64(),
    ),  # the levels of the whole image between which the network sees it; null: all
    ("level_high", pa.float64()),
    ("tissue_fraction", pa.float64()),
    (
        "warnings",
        pa.list_(pa.string()),
    ),  # mpp_not_believed, mpp_missing, no_tissue, view_unreadable, fluorescence
]

PLAN = _versioned([*_SOURCE, *_PLACE, ("tissue", pa.binary()), ("attempt", pa.int32()), *_ERROR])
"""One region to segment a row; a row group is a chunk: what one task takes. An error was found while planning."""

INSTANCE = pa.struct(
    [
        ("centroid_y", pa.float64()),  # level-0 pixels; the centre of the first pixel is 0.5
        ("centroid_x", pa.float64()),
        ("area_px", pa.float64()),
        ("perimeter_px", pa.float64()),
        ("eccentricity", pa.float64()),
        ("score", pa.float64()),  # mean probability
        ("touches_edge", pa.bool_()),
        ("polygon", pa.binary()),  # WKB, level-0 pixels, along the pixels' edges
    ]
)

REGIONS = _versioned(
    [
        ("region_id", pa.string()),
        *_SOURCE,
        *_PLACE,
        ("mask", pa.binary()),  # PNG, 0 or 255
        ("labels", pa.binary()),  # PNG, 16 bit, on request
        ("probability", pa.binary()),  # PNG, times 255, on request
        ("instances", pa.list_(INSTANCE)),
        ("num_instances", pa.int64()),
        (
            "neighbours",
            pa.list_(pa.list_(pa.float64(), 2)),
        ),  # y and x of nuclei that it saw and that belong to other regions
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
        ("status", pa.string()),  # ok, failed, empty
        *_ERROR,
        ("attempt", pa.int32()),
        *_SECONDS,
        *_ORIGIN,
    ]
)
"""One region a row, with all that was found in it: one write is one commit."""

IMAGES = _versioned(
    [
        *_SOURCE,
        ("format", pa.string()),
        ("is_slide", pa.bool_()),  # it was read in parts
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("num_regions", pa.int64()),
        ("num_regions_failed", pa.int64()),
        ("tissue_fraction", pa.float64()),
        ("status", pa.string()),  # ok, partial, failed, empty
        ("num_nuclei", pa.int64()),
        ("nuclei_per_mm2", pa.float64()),
        ("median_nucleus_area_um2", pa.float64()),
        ("foreground_fraction", pa.float64()),
        ("mean_confidence", pa.float64()),
        ("mean_entropy", pa.float64()),  # bits a pixel
        ("uncertain_fraction", pa.float64()),
        ("seam_disagreement", pa.float64()),
        ("focus_score", pa.float64()),
        ("qc_status", pa.string()),  # pass, warn, fail
        ("qc_reasons", pa.list_(pa.string())),
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
"""One image a row; its row says that the image is done."""

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
"""One nucleus a row: GeoParquet."""

TRIALS = _versioned(
    [
        ("trial", pa.int64()),
        ("name", pa.string()),
        ("status", pa.string()),  # completed, stopped, failed, unfinished
        ("reason", pa.string()),
        ("monitor", pa.string()),
        ("score", pa.float64()),  # best validation of `monitor`
        ("epoch", pa.int64()),  # of that validation
        ("epochs", pa.int64()),  # validated so far
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
"""One trial of a sweep a row; a column `config.FIELD` of the field's own type follows for each field that is searched."""
