"""One run: take the lease, finish what was interrupted, plan what is new, segment, commit.

runs/RUN/plan/*.parquet   what to do
runs/RUN/run.json         configuration and result; its status is `planned` until the run is done
"""

import json
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from resunet_ray import bundles, storage
from resunet_ray.bundle_info import BundleInfo, read_bundle_info, versions
from resunet_ray.cluster import connect
from resunet_ray.config import SegmentConfig, load_config
from resunet_ray.config.roles import MAY_CHANGE, list_fields
from resunet_ray.errors import InputError
from resunet_ray.monitoring import count_images
from resunet_ray.segment import layout
from resunet_ray.segment.commit import chunks_done, commit_run
from resunet_ray.segment.planning.ledger import read_ledger
from resunet_ray.segment.planning.listing import Listing
from resunet_ray.segment.planning.plan import Plan, count_plan, drop_done, list_new, write_plan
from resunet_ray.segment.planning.slides import SlidePlanner
from resunet_ray.segment.planning.survey import Surveyor
from resunet_ray.segment.work.actors import segment_chunks, uses_gpu
from resunet_ray.segment.work.spec import RunSpec
from resunet_ray.storage import Lease, crashes

logger = logging.getLogger(__name__)

_LOOK_THREADS = 16


@dataclass
class SegmentationResult:
    """What a run did."""

    run_id: str | None
    """None if there was nothing to do."""
    images: dict[str, int]
    """Number of images by status; `changed` are those that were replaced before they were read."""
    unclear: int = 0
    """Those of the failed that were missing or denied, and will be tried again."""
    regions: int = 0
    done_before: int = 0
    failed_before: int = 0
    repeated: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files of the inputs that are not read, by kind."""
    megapixels_per_second: float = 0.0
    images_per_second: float = 0.0
    model_busy_fraction: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    """Of all actors: core-seconds and GPU-seconds, for an image and for a megapixel too, and the
    price if that of an hour is known."""

    @property
    def error_fraction(self) -> float:
        """Share of the run's images that failed, or of all that were listed if that is more."""
        failed, images = self.images.get("failed", 0), sum(self.images.values())
        listed = images + self.done_before + self.failed_before
        return max(failed / max(1, images), (failed + self.failed_before) / max(1, listed))


def segment(config: SegmentConfig) -> list[SegmentationResult]:
    """Segment what is new, after finishing any interrupted run over the same output.

    Returns:
        One result for each run that was finished, this configuration's last.

    Raises:
        ConfigError: the bundle cannot have such tiles; or the output's storage cannot keep two
            writers apart, and `lease` is on.
        InputError: bundle or input is missing.
        LeaseError: another run is writing to the output.
        ResourceError: the cluster or the storage lacks what the run needs.
        RunError: regions or the lease were lost.
    """
    config = _resolve(config)
    info, digest = read_bundle_info(config.bundle)
    info = info.with_tile(config.tile)
    if config.dry_run:
        return [_plan(config, info=info, digest=digest, run_id=None, lease=storage.NO_LEASE)[1]]
    with storage.hold_output(config, config.output) as held:
        results = [
            _run_planned(run_id, config=config, lease=held)
            for run_id in _clear_and_list_unfinished(config.output)
        ]
        if results:  # what one of them has just tried waits for the next command
            config = replace(config, unclear_retries=0)
        run_id, planned = _plan(config, info=info, digest=digest, run_id=_new_run_id(), lease=held)
        results.append(
            planned if run_id is None else _run_planned(run_id, config=config, lease=held)
        )
    return results


def _resolve(config: SegmentConfig) -> SegmentConfig:
    return replace(
        config,
        bundle=bundles.absolute(config.bundle),
        input=tuple(storage.absolute(uri) for uri in config.input),
        output=storage.absolute(config.output).rstrip("/"),
        masks=None if config.masks is None else storage.absolute(config.masks),
        cache=storage.absolute(config.cache),
    )


def _new_run_id() -> str:
    """Return an id that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def _clear_and_list_unfinished(output: str) -> list[str]:
    """Delete runs that ended during planning; list those that were planned and not finished.

    Every run is read: a wrong clock gives names that sort anywhere.
    """
    folder = storage.join(output, layout.RUNS)

    def look(run_id: str) -> str | None:
        uri = layout.record_uri(output, run_id)
        if not storage.exists(uri):
            storage.delete_folder(storage.join(folder, run_id))
            return None
        return run_id if json.loads(storage.read_bytes(uri))["status"] == "planned" else None

    with ThreadPoolExecutor(_LOOK_THREADS) as pool:
        return [
            run_id for run_id in pool.map(look, storage.list_folders(folder)) if run_id is not None
        ]


def _plan(
    config: SegmentConfig, *, info: BundleInfo, digest: str, run_id: str | None, lease: Lease
) -> tuple[str | None, SegmentationResult]:
    """Write the plan of a new run; without an id, only count it.

    The id returned is None if there is nothing to do.
    """
    start = time.perf_counter()
    ledger = read_ledger(
        config.output,
        bundle_digest=digest,
        config_digest=config.digest,
        retries=config.unclear_retries,
    )
    listing = Listing(
        config.input,
        storage.Cache.of(config),
        masks=config.masks,
        mpp=config.mpp,
        mpp_csv=config.mpp_csv,
        exclude=config.output,
    )
    folder = None if run_id is None else layout.run_folder(config.output, run_id)
    plan = Plan()
    images = list_new(listing, plan, ledger=ledger, retry_failed=config.retry_failed)
    if folder is None:
        count_plan(images, plan)
    else:
        slides = SlidePlanner(Surveyor.of(config, info), folder=storage.join(folder, "survey"))
        regions = slides.plan(images)
        retry = config.retry_failed
        write_plan(folder, drop_done(regions, plan, ledger=ledger, retry_failed=retry), plan)
    plan.passed_over = dict(listing.passed_over.kinds)
    if not plan.listed:
        passed_over = f". Passed over: {listing.passed_over}" if plan.passed_over else ""
        raise InputError(f"{', '.join(config.input)}: no image found{passed_over}")
    result = SegmentationResult(
        run_id=run_id if plan.regions else None,
        images={"planned": plan.images} if config.dry_run else {},
        regions=plan.regions,
        done_before=plan.done,
        failed_before=plan.failed_before,
        repeated=plan.repeated,
        passed_over=plan.passed_over,
        seconds={"plan": time.perf_counter() - start},
    )
    logger.info(
        "%d images listed: %d to do, %d done before, %d failed before%s, %d listed twice",
        plan.listed,
        plan.images,
        plan.done,
        plan.failed_before,
        ""
        if config.retry_failed or not plan.failed_before
        else " (--retry-failed tries them again)",
        plan.repeated,
    )
    lease.check()
    if folder is not None and plan.regions:
        _write_record(
            folder,
            {
                "status": "planned",
                "config": asdict(config),
                "bundle_digest": digest,
                "plan": asdict(plan),
            },
        )
    return result.run_id, result


def _write_record(folder: str, record: dict[str, Any]) -> None:
    storage.write_bytes(
        storage.join(folder, layout.RUN_FILE), json.dumps(record, indent=1).encode()
    )


def _run_planned(run_id: str, *, config: SegmentConfig, lease: Lease) -> SegmentationResult:
    """Segment what a planned run still lacks, commit it, and record the result."""
    folder = layout.run_folder(config.output, run_id)
    record = json.loads(storage.read_bytes(storage.join(folder, layout.RUN_FILE)))
    saved = load_config(
        json.dumps(record["config"]),
        kind=SegmentConfig,
        source=storage.join(folder, layout.RUN_FILE),
    )
    # Fields marked MayChange take today's values; all others keep the run's.
    own = replace(
        saved, **{name: getattr(config, name) for name in list_fields(SegmentConfig, MAY_CHANGE)}
    )
    plan = Plan.read(record["plan"])
    _, digest = read_bundle_info(own.bundle)
    if digest != record["bundle_digest"]:
        raise InputError(
            f"the run {run_id} is unfinished, and its bundle {own.bundle} has changed since "
            f"(digest {digest[:12]}, then {record['bundle_digest'][:12]}): restore the old bundle, "
            f"or give the run up: jobs/segment.py give-up --output {config.output} --run {run_id}"
        )
    if own.actors != 0:
        connect()
    begun = time.perf_counter()
    todo = sorted(set(range(plan.chunks)) - chunks_done(config.output, run_id))
    if len(todo) < plan.chunks:
        logger.info(
            "resuming run %s: %d of %d chunks are done",
            run_id,
            plan.chunks - len(todo),
            plan.chunks,
        )
    spec = RunSpec(
        run_id=run_id,
        session=uuid.uuid4().hex[:12],
        folder=folder,
        output=own.output,
        config=own,
        bundle_digest=digest,
        chunks=tuple(todo),
        gpu=uses_gpu(own),
        threads=None if own.actors in (None, 0, 1) else own.cpus_per_actor,
    )
    unit = "images" if plan.images == plan.regions else "regions"
    sums = segment_chunks(spec, unit=unit, lease=lease)
    segmented = time.perf_counter()
    lease.check()
    statuses, unclear = commit_run(
        config.output,
        run_id=run_id,
        folder=folder,
        plan=plan,
        digests={"bundle_digest": digest, "config_digest": own.digest},
    )
    lease.check()
    seconds = {
        "segment": segmented - begun,
        "commit": time.perf_counter() - segmented,
        **sums.stages,
    }
    images = sums.regions * plan.images / plan.regions
    result = SegmentationResult(
        run_id=run_id,
        images=dict(statuses),
        unclear=unclear,
        regions=plan.regions,
        done_before=plan.done,
        failed_before=plan.failed_before,
        repeated=plan.repeated,
        passed_over=plan.passed_over,
        megapixels_per_second=round(sums.pixels / 1e6 / sums.seconds, 3),
        images_per_second=round(images / sums.seconds, 3),
        model_busy_fraction=round(sums.stages["model"] / sums.network_seconds, 4),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        cost=sums.cost(gpus=spec.gpus, images=images, price_per_hour=own.price_per_hour),
    )
    crashes.forget(folder)
    for name in (layout.REGIONS, layout.INSTANCES, layout.IMAGES, layout.RUNS):
        storage.clear_parts(storage.join(config.output, name, run_id))
    _write_record(
        folder, {**record, "status": "done", "versions": versions(), "result": asdict(result)}
    )
    count_images(spec.watched, statuses)
    return result
