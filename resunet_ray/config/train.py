"""The configuration of a training run, and the baseline's own."""

import re
from dataclasses import dataclass, field
from typing import Literal

from resunet_ray.config.checks import ANY, TINY, require, require_default, require_range
from resunet_ray.config.model import AugmentConfig, ModelConfig, PreprocessConfig
from resunet_ray.config.roles import Shared, Todays

Metric = Literal["loss", "accuracy", "f1", "jaccard", "recall", "precision"]

_CREDENTIALS = re.compile(r"://[^/@]*:[^/@]*@")


def lower_is_better(metric: str) -> bool:
    """Which way a validation score improves."""
    return metric == "loss"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are the default recipe; `--recipe baseline` starts from the baseline's."""

    data: Todays[str]
    """What `jobs/prepare.py` wrote, or a plain folder with images/ and masks/."""
    output: Shared[str]
    """Where checkpoints, history, logs and the bundle go. The same command over the same output resumes."""
    name: Shared[str] = "train"
    """Name of the run under the output."""
    workers: Todays[int] = 1
    """Data-parallel workers."""
    min_workers: Todays[int | None] = None
    """Smallest number of workers to go on with when nodes leave: an elastic run. None: exactly `workers`."""
    gpu: Todays[Literal["auto", "on", "off"]] = "auto"
    """One GPU for each worker. auto: if the cluster has them."""
    cpus_per_worker: Todays[int] = 1
    """CPUs that Ray sets aside for each worker."""
    threads: Todays[int | None] = None
    """Threads that the model uses in a CPU worker. None: the cores of the node over the workers on it; Ray Data's decoding
    takes little of them."""
    init: str | None = None
    """Bundle whose weights are the start; `nuclei` is the one that comes with the package."""
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    crop: int = 256
    """Side of a training crop, pixels, at native resolution."""
    loss: Literal["bce", "dice", "bce_dice", "focal", "focal_tversky", "tanimoto"] = "bce_dice"
    """What is minimised."""
    positive_weight: float = 1.0
    """Weight of nucleus pixels in bce, bce_dice and focal."""
    balance_area: float | None = None
    """0: every image once an epoch. 1: every pixel equally often, a large image by many crops. Between: in between (exponent
    of the area). None: 0.5, or 0 where images are resized and one crop shows all of each."""
    balance_modalities: float = 0.0
    """0: every image once an epoch. 1: every modality equally often. Between: in between (exponent of the inverse share)."""
    optimizer: Literal["adam", "adamw"] = "adamw"
    """Adam, or with decoupled weight decay (biases and normalisation excepted)."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    batch_size: int = 8
    """Crops in one step, over all workers."""
    epochs: Shared[int] = 36
    """Passes over the training split."""
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """cosine: linear warm-up, then half a cosine to 1% of the peak. plateau: times `plateau_factor` when `monitor` stalls."""
    warmup_epochs: float = 2.0
    """Epochs of linear warm-up (cosine)."""
    plateau_factor: float = 0.1
    """Factor of each reduction (plateau)."""
    plateau_patience: int = 5
    """Validations without improvement before a reduction (plateau)."""
    min_learning_rate: float = 1e-7
    """Floor of the learning rate (plateau)."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""
    ema_decay: float | None = 0.998
    """Decay of the moving average of weights that is validated and kept, per step; None: the weights themselves."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: autocast. auto: bf16 where the processor computes in it, else fp32."""
    compile: bool = False
    """torch.compile the network (on CPUs it needs a C++ compiler, and was measured to gain nothing)."""
    validation_interval: Shared[int] = 4
    """Epochs between validations; the last epoch is always validated. Patience counts validations."""
    monitor: Shared[Metric] = "f1"
    """Validation score that picks the best checkpoint and drives plateau and early stopping; the mean over images."""
    early_stopping_patience: int | None = None
    """Validations without improvement before training ends; None: never."""
    keep_checkpoints: Todays[int] = 2
    """Best checkpoints to keep, beside the latest."""
    shuffle_buffer: int = 512
    """Crops among which the next one is drawn, per worker."""
    seed: int = 0
    """Seed of everything random. The same seed and number of workers repeat a run."""
    max_failures: Todays[int] = 3
    """Times that lost workers or nodes are replaced before the run fails."""
    start_timeout_seconds: Todays[float] = 120.0
    """How long to wait for workers that fit the cluster but do not start, for instance because other jobs hold the CPUs."""
    nodes_seconds: Todays[float | None] = None
    """How long to wait for nodes where the cluster is too small. None: half an hour if it says that it has an autoscaler."""
    mlflow: Todays[str | None] = None
    """MLflow tracking URI to log to (needs the extra `mlflow`)."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"--workers {self.workers}: expected at least 1")
        low = self.min_workers
        require(
            low is None or 1 <= low <= self.workers,
            f"--min-workers {low}: expected 1 to {self.workers}, the number of --workers",
        )
        require_range(
            self,
            1,
            ANY,
            "epochs",
            "batch_size",
            "cpus_per_worker",
            "threads",
            "validation_interval",
        )
        require_range(
            self,
            1,
            ANY,
            "keep_checkpoints",
            "shuffle_buffer",
            "plateau_patience",
            "early_stopping_patience",
            "crop",
        )
        require_range(
            self,
            0,
            ANY,
            "max_failures",
            "nodes_seconds",
            "warmup_epochs",
            "min_learning_rate",
            "weight_decay",
            "seed",
        )
        require_range(
            self,
            TINY,
            ANY,
            "learning_rate",
            "clip_norm",
            "start_timeout_seconds",
            "positive_weight",
        )
        require_range(self, 0, 1, "balance_area", "balance_modalities")
        require_range(self, TINY, 1 - TINY, "ema_decay", "plateau_factor")
        require(
            bool(self.name) and "/" not in self.name,
            f"--name {self.name!r}: expected the name of one folder",
        )
        require(
            self.mlflow is None or not _CREDENTIALS.search(self.mlflow),
            "--mlflow carries credentials, which would be written into the run's files: give them through "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
        if self.schedule != "plateau":
            require_default(
                self,
                f"by --schedule {self.schedule}",
                "plateau_factor",
                "plateau_patience",
                "min_learning_rate",
            )
        if self.schedule != "cosine":
            require_default(self, f"by --schedule {self.schedule}", "warmup_epochs")
        if self.preprocess.resize is not None:
            require_default(self, "where --preprocess.resize makes one crop of each image", "crop")
            require(
                not self.balance_area,
                f"--balance-area {self.balance_area} would be ignored with --preprocess.resize: leave it out",
            )
        for workers in range(low or self.workers, self.workers + 1):
            require(
                self.batch_size % workers == 0,
                f"--batch-size {self.batch_size} is per step over all workers and does not divide by {workers}: "
                f"expected a multiple of every number of workers from {low or self.workers} to {self.workers}",
            )
        stride = 2 ** (len(self.model.widths) - 1)
        require(
            self.crop % stride == 0 and self.preprocess.tile % stride == 0,
            f"--crop {self.crop} and --preprocess.tile {self.preprocess.tile}: expected multiples of {stride}, "
            "the stride of the deepest level",
        )
        require(
            self.optimizer == "adamw" or self.weight_decay == 0,
            f"--weight-decay {self.weight_decay} would be ignored by --optimizer adam: set it to 0, or use adamw",
        )
        require(
            self.positive_weight == 1 or self.loss in ("bce", "bce_dice", "focal"),
            f"--positive-weight {self.positive_weight} would be ignored by --loss {self.loss}: "
            "leave it at 1, or choose bce, bce_dice or focal",
        )

    @property
    def area_exponent(self) -> float:
        """How much more often a large image is drawn: `balance_area`, or what stands for its None."""
        if self.balance_area is not None:
            return self.balance_area
        return 0.5 if self.preprocess.resize is None else 0.0


def baseline_recipe(*, data: str, output: str) -> TrainConfig:
    """The baseline's own training: Keras's ResUNet at 256×256 with binary cross-entropy and Adam."""
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
