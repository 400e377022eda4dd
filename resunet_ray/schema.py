"""The Arrow schemas of every table that this package writes."""

import pyarrow as pa

SCHEMA_VERSION = "1"

_TEXTS = pa.list_(pa.string())
_POINTS = pa.list_(pa.list_(pa.float64(), 2))


def _versioned(fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION})


DATASET = _versioned(
    [
        ("image_id", pa.string()),  # name of the image
        ("split", pa.string()),  # train, val, test
        ("image", pa.binary()),  # encoded: PNG, or the original 8-bit JPEG or PNG
        ("mask", pa.binary()),  # PNG, 0 or 255
        ("labels", pa.binary()),  # 16-bit PNG, 0 is background; null if instances are unknown
        ("height", pa.int32()),  # pixels
        ("width", pa.int32()),  # pixels
        ("mpp", pa.float64()),  # microns per pixel; null if unknown
        ("modality", pa.string()),  # as the metadata say; may be null
        ("source_uri", pa.string()),  # where the image came from
    ]
)
"""One row per labelled image. Training and evaluation read this table."""

REJECTS = _versioned(
    [
        ("image_id", pa.string()),  # name of the image
        ("source_uri", pa.string()),  # where the image came from
        ("reason", pa.string()),  # kind of the problem
        ("message", pa.string()),  # what is wrong, and what to do
    ]
)
"""One row per image that `prepare` found and rejected."""

SCORES = _versioned(
    [
        ("image_id", pa.string()),  # name of the image
        ("modality", pa.string()),  # as the metadata say; may be null
        ("height", pa.int32()),  # pixels
        ("width", pa.int32()),  # pixels
        ("tp", pa.int64()),  # nucleus pixels found
        ("fp", pa.int64()),  # background pixels taken for nucleus
        ("fn", pa.int64()),  # nucleus pixels missed
        ("tn", pa.int64()),  # background pixels left alone
        ("accuracy", pa.float64()),  # (tp + tn) / all pixels
        ("f1", pa.float64()),  # 2 tp / (2 tp + fp + fn)
        ("jaccard", pa.float64()),  # tp / (tp + fp + fn)
        ("recall", pa.float64()),  # tp / (tp + fn)
        ("precision", pa.float64()),  # tp / (tp + fp)
        ("num_true", pa.int64()),  # true nuclei
        ("num_found", pa.int64()),  # nuclei found
        ("ap", pa.list_(pa.float64())),  # at IoU 0.50, 0.55 … 0.95
        ("pq", pa.float64()),  # panoptic quality
        ("aji", pa.float64()),  # aggregated Jaccard index
    ]
)
"""One row per scored image. The instance columns are null if the data set has no instances."""

OUTCOMES = _versioned(
    [
        ("image_id", pa.string()),  # name of the image
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
    ("image_uri", pa.string()),  # location of the file
    ("member", pa.string()),  # path within an archive, or name of the plane within its file
    ("member_offset", pa.int64()),  # byte at which a tar member begins
    ("source_bytes", pa.int64()),  # size of the file or member
    ("source_etag", pa.string()),  # of the object store
    ("source_mtime", pa.timestamp("us", tz="UTC")),  # last modification
    ("mask_uri", pa.string()),  # the true mask, if there is one
    ("mpp", pa.float64()),  # microns per pixel; null if unknown
    ("mpp_source", pa.string()),  # argument, manifest, sidecar or metadata; null if mpp is
    ("file_id", pa.string()),  # of the file that the plane is in; null if the file is one image
    ("scene", pa.int32()),  # number of the image within its file; null if the file is one image
    ("t", pa.int32()),  # number of the point in time; likewise
    ("z", pa.int32()),  # number of the focal plane; likewise
    ("channel", pa.string()),  # name or number of the channel; null if there is only one
]
_ERROR: list[tuple[str, pa.DataType]] = [
    ("error_stage", pa.string()),  # list, open, read, decode, mask, model, post or crash
    ("error_type", pa.string()),  # exception
    ("error_message", pa.string()),  # without credentials
    ("error_kind", pa.string()),  # image: its own fault; unclear: missing or denied, tried again
]
_SECONDS: list[tuple[str, pa.DataType]] = [
    ("read_seconds", pa.float64()),  # of threads: reading and decoding
    ("model_seconds", pa.float64()),  # in the network
    ("post_seconds", pa.float64()),  # instances, measures, encoding
]
_ORIGIN: list[tuple[str, pa.DataType]] = [
    ("run_id", pa.string()),  # folder of the run in runs/
    ("bundle_digest", pa.string()),  # SHA-256 of its bundle.json
    ("config_digest", pa.string()),  # of the settings that decide the result
    ("code_version", pa.string()),  # version of this package
]

_PLACE: list[tuple[str, pa.DataType]] = [
    ("region_index", pa.int32()),  # number of the region within its image
    ("num_regions", pa.int32()),  # in the whole image; 0 for a slide with nothing to segment
    ("y", pa.int64()),  # top left corner, level-0 pixels
    ("x", pa.int64()),  # level-0 pixels
    ("height", pa.int64()),  # null if the image has not been decoded
    ("width", pa.int64()),  # pixels
    ("scale_to_level0", pa.float64()),  # level-0 pixels per pixel that the network sees
    ("slide_height", pa.int64()),  # level-0 pixels; null if it is not a slide
    ("slide_width", pa.int64()),  # level-0 pixels; null: no slide
    ("format", pa.string()),  # of the file
    ("level_low", pa.float64()),  # image-wide intensity that becomes 0; null if not measured
    ("level_high", pa.float64()),  # image-wide intensity that becomes 255
    ("diameter_px", pa.float64()),  # of the nuclei, as the network estimates it; null on slides
    ("tissue_fraction", pa.float64()),  # of the slide; null if not looked for
    ("warnings", _TEXTS),  # mpp_not_believed, mpp_missing, no_tissue, view_unreadable, fluorescence
]

PLAN = _versioned(
    [
        *_SOURCE,
        *_PLACE,
        ("tissue", pa.binary()),
        ("attempt", pa.int32()),
        ("source_fingerprint", pa.string()),
        ("mask_fingerprint", pa.string()),
        *_ERROR,
    ]
)
"""One row per region to segment. A row group is a chunk: what one task takes.

The error columns hold what went wrong while planning.
"""

INSTANCE = pa.struct(
    [
        ("centroid_y", pa.float64()),  # level-0 pixels; the centre of the first pixel is at 0.5
        ("centroid_x", pa.float64()),  # level-0 pixels
        ("area_px", pa.float64()),  # level-0 pixels
        ("perimeter_px", pa.float64()),  # level-0 pixels
        ("eccentricity", pa.float64()),  # 0 for a circle, near 1 for a line
        ("score", pa.float64()),  # mean probability of its pixels
        ("touches_edge", pa.bool_()),  # of the image
        ("polygon", pa.binary()),  # WKB, level-0 pixels, along pixel edges
    ]
)

REGIONS = _versioned(
    [
        ("region_id", pa.string()),  # image_id-region_index
        *_SOURCE,
        *_PLACE,
        ("mask", pa.binary()),  # PNG, 0 or 255
        ("labels", pa.binary()),  # 16-bit PNG, on request
        ("probability", pa.binary()),  # PNG, probability × 255, on request
        ("instances", pa.list_(INSTANCE)),  # its nuclei
        ("num_instances", pa.int64()),  # nuclei that belong to the region
        ("neighbours", _POINTS),  # y and x of nuclei seen here that belong to other regions
        ("pixels", pa.int64()),  # of the region
        ("foreground_pixels", pa.int64()),  # nucleus
        ("uncertain_pixels", pa.int64()),  # probability between 0.25 and 0.75
        ("confidence_sum", pa.float64()),  # of the likelier class's probability
        ("entropy_sum", pa.float64()),  # bits
        ("grey_sum", pa.float64()),  # of the grey levels, 0 to 255
        ("grey_square_sum", pa.float64()),  # of their squares
        ("laplacian_square_sum", pa.float64()),  # of the squares of their Laplacian
        ("tp", pa.int64()),  # nucleus pixels found
        ("fp", pa.int64()),  # background pixels taken for nucleus
        ("fn", pa.int64()),  # nucleus pixels missed
        ("tn", pa.int64()),  # background pixels left alone
        ("true_nuclei", pa.int64()),  # null unless the true ones are numbered
        ("matched_nuclei", pa.int64()),  # found, with an IoU above 0.5
        ("matched_iou_sum", pa.float64()),  # of these
        ("status", pa.string()),  # ok, failed or empty
        *_ERROR,
        ("attempt", pa.int32()),  # 1, more after --retry-failed
        *_SECONDS,
        *_ORIGIN,
    ]
)
"""One row per region, with everything found in it. One file is one commit."""

IMAGES = _versioned(
    [
        *_SOURCE,
        ("format", pa.string()),  # of the file
        ("is_slide", pa.bool_()),  # whether it was read in parts
        ("height", pa.int64()),  # pixels
        ("width", pa.int64()),  # pixels
        ("num_regions", pa.int64()),  # read or failed
        ("num_regions_failed", pa.int64()),  # could not be read
        ("diameter_px", pa.float64()),  # of the nuclei, as the network estimates it; null on slides
        ("tissue_fraction", pa.float64()),  # of the slide; null if not looked for
        ("status", pa.string()),  # ok, partial, failed or empty
        ("num_nuclei", pa.int64()),  # nuclei in all regions
        ("nuclei_per_mm2", pa.float64()),  # null if mpp is
        ("median_nucleus_area_um2", pa.float64()),  # null if mpp is
        ("foreground_fraction", pa.float64()),  # nucleus pixels
        ("mean_confidence", pa.float64()),  # mean of the likelier class's probability
        ("mean_entropy", pa.float64()),  # bits per pixel
        ("uncertain_fraction", pa.float64()),  # pixels with a probability between 0.25 and 0.75
        ("seam_disagreement", pa.float64()),  # of a slide: objects at seams that no region owns
        ("focus_score", pa.float64()),  # Laplacian energy over grey variance; low: blurred
        ("qc_status", pa.string()),  # pass, warn or fail
        ("qc_reasons", _TEXTS),  # blank, out_of_focus, uncertain, no_nuclei, partial, failed, …
        ("accuracy", pa.float64()),  # (tp + tn) / all pixels
        ("f1", pa.float64()),  # 2 tp / (2 tp + fp + fn)
        ("jaccard", pa.float64()),  # tp / (tp + fp + fn)
        ("recall", pa.float64()),  # tp / (tp + fn)
        ("precision", pa.float64()),  # tp / (tp + fp)
        ("ap50", pa.float64()),  # of nuclei: matches (IoU above 0.5) / (true + found - matches)
        ("pq", pa.float64()),  # panoptic quality; null unless the true nuclei are numbered
        *_ERROR,
        ("attempt", pa.int32()),  # 1, more after --retry-failed
        *_SECONDS,
        ("finished_at", pa.timestamp("us", tz="UTC")),  # when it was committed
        *_ORIGIN,
    ]
)
"""One row per image. An image is done once its row is here."""

INSTANCES = _versioned(
    [
        ("instance_id", pa.string()),  # UUID, the same in every run with the same result
        ("image_id", pa.string()),  # name of the image
        ("run_id", pa.string()),  # folder of the run in runs/
        ("bundle_digest", pa.string()),  # SHA-256 of its bundle.json
        ("config_digest", pa.string()),  # of the settings that decide the result
        ("geometry", pa.binary()),  # polygon, WKB, level-0 pixels
        ("centroid_y", pa.float64()),  # level-0 pixels
        ("centroid_x", pa.float64()),  # level-0 pixels
        ("area_px", pa.float64()),  # level-0 pixels
        ("area_um2", pa.float64()),  # null if mpp is
        ("perimeter_um", pa.float64()),  # null if mpp is
        ("eccentricity", pa.float64()),  # 0 for a circle, near 1 for a line
        ("score", pa.float64()),  # mean probability
        ("touches_edge", pa.bool_()),  # of the image
        ("bbox", pa.struct([(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])),
    ]
)
"""One row per nucleus, as GeoParquet."""

TRIALS = _versioned(
    [
        ("trial", pa.int64()),  # number of the trial
        ("name", pa.string()),  # folder of the trial
        ("status", pa.string()),  # completed, stopped, failed or unfinished
        ("reason", pa.string()),  # kind of the problem
        ("monitor", pa.string()),  # the score that is compared
        ("score", pa.float64()),  # best validation score of `monitor`
        ("epoch", pa.int64()),  # epoch of that validation
        ("epochs", pa.int64()),  # epochs trained as of the last validation
        ("loss", pa.float64()),  # validation loss
        ("accuracy", pa.float64()),  # (tp + tn) / all pixels
        ("f1", pa.float64()),  # 2 tp / (2 tp + fp + fn)
        ("jaccard", pa.float64()),  # tp / (tp + fp + fn)
        ("recall", pa.float64()),  # tp / (tp + fn)
        ("precision", pa.float64()),  # tp / (tp + fp)
        ("seconds", pa.float64()),  # of training
        ("started_at", pa.string()),  # ISO 8601
        ("finished_at", pa.string()),  # when it was committed
        ("bundle", pa.string()),  # location
    ]
)
"""One row per trial of a sweep.

A column `config.FIELD`, of the field's own type, follows for each searched field.
"""
