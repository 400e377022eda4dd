"""What every actor of a run needs to know, and writes into each row."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from resunet_ray import __version__, monitoring
from resunet_ray.cluster import count_cores
from resunet_ray.config import SegmentConfig
from resunet_ray.errors import ResourceError, RunError
from resunet_ray.segment.rows import Origin

if TYPE_CHECKING:
    from resunet_ray.bundle import Bundle

_MOST_POST_THREADS = 8  # each holds a region of a slide
_GPU_THREADS = 2  # one prepares and fetches while the other computes


@dataclass(frozen=True)
class RunSpec:
    """A run as its actors know it."""

    run_id: str
    session: str
    """Identifies the driver."""
    folder: str
    """The run's folder, which holds the plan."""
    output: str
    config: SegmentConfig
    bundle_digest: str
    chunks: tuple[int, ...]
    """Chunks to segment; a task is an index into them."""
    gpu: bool
    """Whether each actor has a GPU."""
    threads: int | None
    """Cores on which each actor computes the network without a GPU; None: all cores of its node."""

    @property
    def watched(self) -> monitoring.Run:
        """The labels of its metrics."""
        return monitoring.Run(output=self.output, name=self.run_id)

    @property
    def origin(self) -> Origin:
        """The origin of its rows."""
        return Origin(
            run_id=self.run_id,
            bundle_digest=self.bundle_digest,
            config_digest=self.config.digest,
            code_version=__version__,
        )

    @property
    def gpus(self) -> float:
        """How much of a GPU each actor has."""
        return 1 / self.config.actors_per_gpu if self.gpu else 0

    @property
    def networks(self) -> int:
        """How many threads of an actor on this node compute the network."""
        return _GPU_THREADS if self.gpu else self.threads or count_cores()

    @property
    def post_threads(self) -> int:
        """How many threads of an actor turn predictions into rows.

        Without a GPU, the cores are the networks'.
        """
        cores = self.threads or count_cores()
        return max(2, min(_MOST_POST_THREADS, cores // 2)) if self.gpu else 2

    def load_bundle(self) -> "Bundle":
        """Load the bundle for an actor's network threads, and run its self-test.

        Raises:
            ResourceError: a GPU is expected, and torch finds none.
            RunError: the bundle was replaced, or its output differs from that recorded when it was
                saved.
        """
        import torch  # not above: only what holds the network needs it, and it takes seconds

        from resunet_ray.bundle import load_bundle

        if self.gpu and not torch.cuda.is_available():
            raise ResourceError(
                "Ray assigned a GPU to the segmenting actor, and torch finds none: install a torch "
                "with CUDA on that node, or segment on CPUs (--gpu off)"
            )
        if not self.gpu:
            # One image a core. Cores that share an image wait after every layer for the slowest of
            # them, which may just be reading or writing.
            torch.set_num_threads(1)
        bundle = load_bundle(
            self.config.bundle,
            device=torch.device("cuda" if self.gpu else "cpu"),
            engine=self.config.engine,
            streams=self.networks,
        )
        if bundle.digest != self.bundle_digest:
            raise RunError(
                f"the bundle {self.config.bundle} was replaced during the run: run the same "
                "command again"
            )
        bundle.self_test(self.config.precision)
        return replace(bundle, info=bundle.info.with_tile(self.config.tile))
