"""The configuration of a training run, and the baseline's own."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from resunet_ray.config.checks import ANY, TINY, require, require_default, require_range
from resunet_ray.config.lease import LeaseConfig
from resunet_ray.config.model import AugmentConfig, ModelConfig, PreprocessConfig
from resunet_ray.config.roles import Heading, MayChange, Shared, Tuning

LossName = Literal["bce", "dice", "bce_dice", "focal", "focal_tversky", "tanimoto"]
WEIGHTED_LOSSES = ("bce", "bce_dice", "focal")
"""Losses that take a weight of nucleus pixels."""
Metric = Literal["loss", "accuracy", "f1", "jaccard", "recall", "precision", "pq", "ap50"]

_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")
_NO_URL = re.compile(r"[^!-~]|[#?%]")
"""What Ray Train, which takes a location for a URL, would cut off or encode."""


def lower_is_better(metric: str) -> bool:
    """Tell whether a lower validation score of this metric is better."""
    return metric == "loss"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LeaseConfig):
    """One training run.

    The defaults are the default recipe; `--recipe baseline` starts from the baseline's, and
    `--recipe long` from one for ten minutes of a GPU.
    """

    data: Annotated[MayChange[str], Heading.INPUT]
    """A data set that `jobs/prepare.py` wrote, or a plain folder with images/ and masks/."""
    output: Shared[str]
    """Where checkpoints, history, logs and the bundle go. The same command with the same output
    resumes."""
    name: Tuning[Shared[str]] = "train"
    """Name of the run's folder in the output."""
    workers: Annotated[MayChange[int], Heading.COMPUTE] = 1
    """Data-parallel workers."""
    min_workers: Tuning[MayChange[int | None]] = None
    """Smallest number of workers to continue with when nodes leave: an elastic run. Default:
    exactly --workers."""
    gpu: MayChange[Literal["auto", "on", "off"]] = "auto"
    """One GPU for each worker. auto: if the cluster has GPUs."""
    cpus_per_worker: MayChange[int] = 1
    """CPUs that Ray reserves for each worker."""
    threads: Tuning[MayChange[int | None]] = None
    """Threads of the model in a CPU worker. Default: the cores of the node divided by its workers;
    Ray Data's decoding takes little of them."""
    init: Annotated[str | None, Heading.MODEL] = None
    """Bundle whose weights training starts from; `nuclei` comes with the package."""
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(heads=("distance", "centre", "diameter"))
    )
    preprocess: PreprocessConfig = field(
        default_factory=lambda: PreprocessConfig(intensity="percentiles")
    )
    augment: Annotated[Tuning[AugmentConfig], Heading.AUGMENTATION] = field(
        default_factory=AugmentConfig
    )
    crop: Annotated[int, Heading.TRAINING] = 256
    """Side of a training crop, pixels, at native resolution."""
    loss: LossName = "bce_dice"
    """Loss to minimise."""
    positive_weight: Tuning[float] = 1.0
    """Weight of nucleus pixels (bce, bce_dice, focal)."""
    balance_area: Tuning[float | None] = None
    """0: every image once per epoch. 1: every pixel equally often, large images by many crops.
    Between: a compromise (exponent of the area). Default: 0.5, or 0 if images are resized and one
    crop shows all of an image."""
    balance_modalities: Tuning[float | None] = 0.0
    """0: every image once per epoch. 1: every modality equally often. Between: a compromise
    (exponent of the inverse share). None: 0.4 if the data set has modalities."""
    optimizer: Tuning[Literal["adam", "adamw"]] = "adamw"
    """adamw: Adam with decoupled weight decay (except of biases and normalisation)."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: Tuning[float] = 0.01
    """Decoupled weight decay (adamw)."""
    batch_size: int = 8
    """Crops in one step, over all workers."""
    epochs: Shared[int] = 36
    """Passes over the training split."""
    schedule: Tuning[Literal["constant", "cosine", "plateau"]] = "cosine"
    """cosine: linear warm-up, then half a cosine to 1% of the peak. plateau: times `plateau_factor`
    when `monitor` stops improving."""
    warmup_epochs: Tuning[float] = 2.0
    """Epochs of linear warm-up (cosine)."""
    plateau_factor: Tuning[float] = 0.1
    """Factor of each reduction (plateau)."""
    plateau_patience: Tuning[int] = 5
    """Validations without improvement before a reduction (plateau)."""
    min_learning_rate: Tuning[float] = 1e-7
    """Smallest learning rate (plateau)."""
    clip_norm: Tuning[float | None] = 1.0
    """Largest norm of the gradient. None: no clipping."""
    ema_decay: Tuning[float | None] = 0.998
    """Decay per step of the moving average of the weights, which is what is validated and kept.
    None: the weights themselves."""
    precision: Tuning[Literal["auto", "fp32", "bf16"]] = "auto"
    """bf16: autocast. auto: bf16 if the processor computes in it, else fp32."""
    compile: Tuning[bool] = False
    """torch.compile the network. On CPUs this needs a C++ compiler, and measured no faster."""
    validation_interval: Annotated[Tuning[Shared[int]], Heading.VALIDATION] = 4
    """Epochs between validations; the last epoch is always validated. Patience counts
    validations."""
    monitor: Shared[Metric] = "f1"
    """Validation score, averaged over images, that picks the best checkpoint and drives plateau and
    early stopping. pq and ap50 compare instances, which takes time: panoptic quality, and average
    precision at an IoU of 0.5."""
    early_stopping_patience: int | None = None
    """Validations without improvement before training stops. Default: never."""
    keep_checkpoints: Tuning[MayChange[int]] = 2
    """Best checkpoints to keep, in addition to the latest."""
    shuffle_buffer: Annotated[Tuning[int], Heading.TRAINING] = 512
    """Crops from which each worker draws the next one at random."""
    seed: int = 0
    """Seed of everything random. The same seed and number of workers repeat a run."""
    max_failures: Annotated[Tuning[MayChange[int]], Heading.COMPUTE] = 3
    """How often to replace lost workers or nodes before the run fails."""
    start_timeout_seconds: Tuning[MayChange[float]] = 120.0
    """How long to wait for workers that fit the cluster but do not start, for instance because
    other jobs use the CPUs."""
    nodes_seconds: Tuning[MayChange[float | None]] = None
    """How long to wait for nodes if the cluster is too small. Default: half an hour if the cluster
    says that it has an autoscaler, else not at all."""
    mlflow: Annotated[Tuning[MayChange[str | None]], Heading.INPUT] = None
    """MLflow tracking URI to log to (needs the extra `mlflow`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low = self.min_workers
        require_range(self, 1, ANY, "workers", "epochs", "batch_size", "cpus_per_worker", "threads")
        require(
            low is None or 1 <= low <= self.workers,
            f"--min-workers {low}: must be from 1 to {self.workers}, the number of --workers",
        )
        require_range(self, 1, ANY, "validation_interval", "early_stopping_patience", "crop")
        require_range(self, 1, ANY, "keep_checkpoints", "shuffle_buffer", "plateau_patience")
        require_range(self, 0, ANY, "max_failures", "nodes_seconds", "warmup_epochs", "seed")
        require_range(self, 0, ANY, "min_learning_rate", "weight_decay")
        require_range(self, TINY, ANY, "learning_rate", "clip_norm", "positive_weight")
        require_range(self, TINY, ANY, "start_timeout_seconds")
        require_range(self, 0, 1, "balance_area", "balance_modalities")
        require_range(self, TINY, 1 - TINY, "ema_decay", "plateau_factor")
        require(
            bool(self.name) and "/" not in self.name,
            f"--name {self.name!r}: must be the name of one folder, without /",
        )
        place = f"{self.output}/{self.name}"
        odd = _NO_URL.search(place) if "://" in place else None
        require(
            odd is None,
            f"--output and --name {place}: Ray Train cannot write to an object store under a name "
            f"with {odd and odd[0]!r}: use ASCII without spaces, #, ? and %",
        )
        require(
            self.mlflow is None or not _CREDENTIALS.search(self.mlflow),
            "--mlflow carries credentials, which would be written into the run's files: "
            "pass them in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
        because = f"by --schedule {self.schedule}"
        if self.schedule != "plateau":
            require_default(
                self, because, "plateau_factor", "plateau_patience", "min_learning_rate"
            )
        if self.schedule != "cosine":
            require_default(self, because, "warmup_epochs")
        if self.preprocess.resize is not None:
            because = "with --preprocess.resize, which makes each image one crop"
            require_default(self, because, "crop")
            require(
                not self.balance_area,
                f"--balance-area {self.balance_area} would be ignored {because}: leave it out",
            )
        for workers in range(low or self.workers, self.workers + 1):
            require(
                self.batch_size % workers == 0,
                f"--batch-size {self.batch_size} is per step over all workers and does not divide "
                f"by {workers}: expected a multiple of every number of workers from "
                f"{low or self.workers} to {self.workers}",
            )
        stride = 2 ** (len(self.model.widths) - 1)
        require(
            self.crop % stride == 0 and self.preprocess.tile % stride == 0,
            f"--crop {self.crop} and --preprocess.tile {self.preprocess.tile}: must be multiples "
            f"of {stride}, the stride of the deepest level",
        )
        require(
            self.optimizer == "adamw" or self.weight_decay == 0,
            f"--weight-decay {self.weight_decay} would be ignored by --optimizer adam: "
            "set it to 0, or use adamw",
        )
        require(
            self.positive_weight == 1 or self.loss in WEIGHTED_LOSSES,
            f"--positive-weight {self.positive_weight} would be ignored by --loss {self.loss}: "
            f"leave it at 1, or use one of {', '.join(WEIGHTED_LOSSES)}",
        )

    @property
    def area_exponent(self) -> float:
        """How much more often a large image is drawn: `balance_area`, or its default."""
        if self.balance_area is not None:
            return self.balance_area
        return 0.5 if self.preprocess.resize is None else 0.0


def long_recipe(*, data: str, output: str) -> TrainConfig:
    """Return what a GPU can do in ten minutes: 170,000 crops of 553 images, under wide changes."""
    return TrainConfig(
        data=data,
        output=output,
        augment=AugmentConfig(
            scale=2.0,
            gap_probability=0.3,
            contrast=0.3,
            gamma=1.8,
            invert_probability=0.03,
            hue_probability=0.5,
            hue=0.1,
            saturation=0.5,
            stain_probability=0.5,
            grey_probability=0.15,
            tint_probability=0.25,
            light_probability=0.3,
            blur_probability=0.25,
            blur=2.0,
            noise_probability=0.3,
            noise=0.07,
        ),
        balance_modalities=None,
        batch_size=32,
        # 17 steps an epoch: 5,304 steps, 300 of them of warm-up.
        epochs=312,
        warmup_epochs=18.0,
        ema_decay=0.999,
        compile=True,
        validation_interval=26,
    )


def baseline_recipe(*, data: str, output: str) -> TrainConfig:
    """Return the baseline's training: Keras's ResUNet at 256×256, binary cross-entropy, Adam."""
    return TrainConfig(
        data=data,
        output=output,
        model=ModelConfig(norm_momentum=0.01, norm_epsilon=1e-3),
        preprocess=PreprocessConfig(resize=256),
        augment=AugmentConfig(enabled=False),
        loss="bce",
        optimizer="adam",
        learning_rate=1e-4,
        weight_decay=0.0,
        batch_size=8,
        epochs=10,
        schedule="plateau",
        clip_norm=None,
        ema_decay=None,
        validation_interval=1,
        monitor="loss",
    )


RECIPES: dict[str, Callable[..., TrainConfig]] = {
    "default": TrainConfig,
    "baseline": baseline_recipe,
    "long": long_recipe,
}
"""Starting points of a training, by the value of `--recipe`."""
