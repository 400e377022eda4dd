"""The loop of a training worker: train for some epochs, validate, report, repeat."""

import itertools
import logging
import math
import tempfile
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import ray.train
import ray.train.torch
import torch
from torch import Tensor

from resunet_ray import storage
from resunet_ray.cluster import count_cores
from resunet_ray.config import TrainConfig, lower_is_better
from resunet_ray.data.dataset import Dataset
from resunet_ray.errors import RunError
from resunet_ray.tasks import map_ahead
from resunet_ray.train.batches import draw_weights, epoch_size, stream_batches
from resunet_ray.train.checkpoint import save_checkpoint
from resunet_ray.train.relay import Reporter
from resunet_ray.train.session import Session, build_session
from resunet_ray.train.step import train_step
from resunet_ray.train.tracking import Tracker, run_folder
from resunet_ray.train.validation import validate

logger = logging.getLogger(__name__)

FAILURE_FILE = "failure.txt"

_BATCHES_AHEAD = 3
_LEAST_COSINE = 0.01  # learning rate at the end of the cosine, as a fraction of its peak


def train_worker(settings: dict[str, object]) -> None:
    """Run one Ray Train worker; `settings` holds `config`, `dataset`, `board` and `lease`."""
    config, dataset, lease = settings["config"], settings["dataset"], settings["lease"]
    assert isinstance(config, TrainConfig), "train() passes it"
    assert isinstance(dataset, Dataset), "train() passes it"
    assert isinstance(lease, storage.Lease), "train() passes it"
    lease.check()
    with Reporter(settings["board"], rank=ray.train.get_context().get_world_rank()) as reporter:
        _train(_begin(config, dataset), reporter, lease)


def _begin(config: TrainConfig, dataset: Dataset) -> Session:
    """Build this worker's session, from the run's last checkpoint if there is one."""
    context = ray.train.get_context()
    torch.set_num_threads(config.threads or max(1, count_cores() // context.get_local_world_size()))
    checkpoint = ray.train.get_checkpoint()
    with checkpoint.as_directory() if checkpoint is not None else nullcontext() as folder:
        return build_session(
            config,
            dataset,
            rank=context.get_world_rank(),
            workers=context.get_world_size(),
            device=ray.train.torch.get_device(),
            resume_from=None if folder is None else Path(folder),
        )


def _train(session: Session, reporter: Reporter, lease: storage.Lease) -> None:
    """Train to the last epoch, or to an error that every worker meets at the same step."""
    config = session.config
    first = session.rank == 0
    with (
        Tracker(config, epoch=session.progress.epoch) if first else nullcontext() as tracker,
        closing(_load_ahead(session)) as stream,
    ):
        while not _finished(session):
            start = session.progress.epoch
            stop = min(
                start + config.validation_interval - start % config.validation_interval,
                config.epochs,
            )
            rows = []
            try:
                for row in _train_epochs(session, range(start, stop), stream, reporter):
                    rows.append(row)
                    if tracker is not None:
                        tracker.note(row)
            except RunError as error:
                # Every worker meets it. Raised further, it would make Ray Train retry the run,
                # only to fail again.
                if tracker is not None:
                    lease.check()
                    storage.write_bytes(
                        storage.join(run_folder(config), FAILURE_FILE), str(error).encode()
                    )
                    tracker.status = "FAILED"
                return
            reporter.note(validating=True)
            scores = _validate(session)
            _note_scores(session, scores, rows)
            reporter.note(validating=False, score=scores[config.monitor])
            if tracker is not None:
                lease.check()
                tracker.write(session.progress.history or [], new=len(rows))
            _report(session, scores)


def learning_rate(config: TrainConfig, *, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step: a linear warm-up times a cosine.

    The cosine is that of Loshchilov and Hutter, 2017, equation 5, without restarts.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falling = (1 + math.cos(math.pi * step / (config.epochs * steps_per_epoch))) / 2
    return config.learning_rate * rising * (_LEAST_COSINE + (1 - _LEAST_COSINE) * falling)


def _finished(session: Session) -> bool:
    config, progress = session.config, session.progress
    patience = config.early_stopping_patience
    return progress.epoch >= config.epochs or (patience is not None and progress.stale >= patience)


def _load_ahead(session: Session) -> Generator[tuple[int, list[Tensor]]]:
    """Yield this worker's batches of all remaining epochs, on its device, each with its epoch.

    A thread stacks them. A copy from pageable memory would make the CPU wait for all that the GPU
    still has to do.
    """
    config, progress = session.config, session.progress
    batches = stream_batches(
        session.dataset,
        config,
        epochs=range(progress.epoch, config.epochs),
        rank=session.rank,
        workers=session.workers,
        weights=draw_weights(session.dataset, config),
    )
    on_gpu = session.device.type == "cuda"

    def load(_: int) -> tuple[int, list[Tensor]]:
        epoch, batch = next(batches)
        parts = [torch.from_numpy(part) for part in batch if part is not None]
        return epoch, [part.pin_memory() for part in parts] if on_gpu else parts

    left = (config.epochs - progress.epoch) * _count_steps(session)
    with closing(batches), ThreadPoolExecutor(max_workers=1) as pool:
        for epoch, parts in map_ahead(pool, load, range(left), depth=_BATCHES_AHEAD):
            yield epoch, [part.to(session.device, non_blocking=True) for part in parts]


def _count_steps(session: Session) -> int:
    """Return the steps in an epoch."""
    return epoch_size(session.dataset, session.config) // session.config.batch_size


def _note_step(reporter: Reporter, session: Session, *, epoch: int, **loss: float) -> None:
    reporter.note(step=session.progress.step, epoch=epoch, validating=False, **loss)


def _train_epochs(
    session: Session, epochs: range, stream: Iterator[tuple[int, list[Tensor]]], reporter: Reporter
) -> Iterator[dict[str, float]]:
    """Train the given epochs, yielding each one's row of the history."""
    config, progress = session.config, session.progress
    steps = _count_steps(session)
    start = time.perf_counter()
    # The tasks that read crops start with the first batch.
    stream = itertools.chain([next(stream)], stream)
    wait = time.perf_counter() - start
    _note_step(reporter, session, epoch=epochs.start + 1)  # the speed shown is measured from here
    for epoch in epochs:
        losses = torch.zeros((), device=session.device)
        session.network.train()
        for number in range(1, steps + 1):
            batch_epoch, batch = next(stream)
            assert batch_epoch == epoch, f"epoch {epoch} got a batch of epoch {batch_epoch}"
            if config.schedule == "cosine":
                _set_learning_rate(
                    session, learning_rate(config, step=progress.step, steps_per_epoch=steps)
                )
            losses += train_step(session, *batch)
            if reporter.due:  # not at every step: reading the loss waits for the GPU
                _note_step(reporter, session, epoch=epoch + 1, loss=float(losses) / number)
        seconds = time.perf_counter() - start
        start += seconds
        if session.workers > 1:
            torch.distributed.all_reduce(losses)
        mean_loss = float(losses) / (steps * session.workers)
        if not math.isfinite(mean_loss):
            raise RunError(
                f"the training loss of epoch {epoch + 1} is {mean_loss}: lower --learning-rate "
                "or --clip-norm"
            )
        progress.epoch += 1
        _note_step(reporter, session, epoch=epoch + 1, loss=mean_loss)
        yield {
            "epoch": epoch + 1,
            "learning_rate": session.optimizer.param_groups[0]["lr"],
            "train_loss": mean_loss,
            "seconds": round(seconds, 3),
            "start_seconds": round(wait, 3),
            "images_per_second": round(steps * config.batch_size / seconds, 3),
        }
        wait = 0.0


def _set_learning_rate(session: Session, rate: float) -> None:
    for group in session.optimizer.param_groups:
        group["lr"] = rate


def _validate(session: Session) -> dict[str, float]:
    network = session.ema or session.network.eval()
    if session.workers > 1:
        # Workers average gradients, but not normalisation statistics. Use those of rank 0, which
        # saves the checkpoint, so that the scores are those of the saved network.
        for buffer in (*session.network.buffers(), *network.buffers()):
            torch.distributed.broadcast(buffer, src=0)
    return validate(
        network,
        session.dataset,
        session.config,
        loss=session.loss,
        rank=session.rank,
        workers=session.workers,
        device=session.device,
        dtype=session.dtype,
    )


def _note_scores(session: Session, scores: dict[str, float], rows: list[dict[str, float]]) -> None:
    """Update the progress: best score, patience, plateau schedule, history."""
    config, progress = session.config, session.progress
    score = scores[config.monitor]
    better = progress.best is None or (
        score < progress.best if lower_is_better(config.monitor) else score > progress.best
    )
    progress.best, progress.stale = (score, 0) if better else (progress.best, progress.stale + 1)
    if session.plateau is not None:
        session.plateau.step(score)
        progress.plateau = session.plateau.state_dict()
    rows[-1] |= {f"val_{name}": value for name, value in scores.items()}
    progress.history = [*(progress.history or []), *rows]
    if session.rank == 0:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        logger.info("epoch %d of %d: validation %s", progress.epoch, config.epochs, shown)


def _report(session: Session, scores: dict[str, float]) -> None:
    """Report scores and, from rank 0, the checkpoint to Ray Train; all workers wait here."""
    values = {"epoch": session.progress.epoch, **(session.progress.history or [{}])[-1], **scores}
    if session.rank != 0:
        ray.train.report(values)
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(
            Path(folder),
            network=session.network,
            ema=session.ema,
            optimizer=session.optimizer,
            progress=session.progress,
        )
        ray.train.report(values, checkpoint=ray.train.Checkpoint.from_directory(folder))
