"""The configurations of all jobs, and the only home of their defaults."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from resunet_ray.errors import ConfigError

Metric = Literal["loss", "accuracy", "f1", "jaccard", "recall", "precision"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a folder or an archive of images and masks becomes Parquet shards."""

    input: tuple[str, ...]
    """Where images and masks lie: folders (images/ beside masks/, or one folder an image as in BBBC038), zip or tar."""
    output: str
    """Where the data set goes: a new or empty folder or prefix."""
    split: Literal["report", "fraction", "group", "file"] = "report"
    """report: sorted names, 20% test, then 20% of the rest validation, as scikit-learn draws them with seed 42.
    fraction: by --val-fraction, --test-fraction and --seed. group: the same, but rows of one group stay together.
    file: from --split-file."""
    val_fraction: float = 0.2
    """Share of the images for validation (fraction, group)."""
    test_fraction: float = 0.2
    """Share of the images for the test (fraction, group)."""
    seed: int = 0
    """Seed of the split (fraction, group)."""
    group_column: str | None = None
    """Column of --metadata whose equal values stay in one split (group)."""
    split_file: str | None = None
    """JSON object that lists the image ids of each split: {"train": [...], "val": [...], "test": [...]} (file).
    An image that it does not list is left out."""
    metadata: str | None = None
    """CSV with a column `id` and, where known, `modality`, `mpp` and the group column."""
    max_reject_fraction: float = 0.0
    """The job fails when more than this share of the images is rejected; rejects.parquet says which and why."""
    max_pixels: int = 2**28
    """An image whose header claims more pixels is refused before it is decoded."""
    rows_per_group: int = 16
    """Images in one Parquet row group: what one read task takes at a time."""
    rows_per_shard: int = 512
    """Images in one Parquet file."""

    def __post_init__(self) -> None:
        _require(bool(self.input), "--input names nothing: expected at least one folder or archive")
        _require(
            self.val_fraction > 0 and self.test_fraction >= 0 and self.val_fraction + self.test_fraction < 1,
            f"--val-fraction {self.val_fraction} and --test-fraction {self.test_fraction} leave no image for training: "
            "expected 0 < val, 0 <= test and a sum below 1",
        )
        _require(
            (self.split == "file") == (self.split_file is not None),
            f"--split {self.split} and --split-file {self.split_file}: they go together, give both or neither",
        )
        _require(
            (self.split == "group") == (self.group_column is not None),
            f"--split {self.split} and --group-column {self.group_column}: they go together, give both or neither",
        )
        _require(
            self.group_column is None or self.metadata is not None,
            f"--group-column {self.group_column} needs --metadata, the CSV that holds it",
        )
        _require(self.rows_per_group > 0 and self.rows_per_shard > 0, "--rows-per-group and --rows-per-shard must be positive")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    in_channels: Literal[1, 3] = 3
    """Channels that the network sees: 3 for RGB, 1 for its luminance."""
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Filters of each level, the finest first."""
    norm_momentum: float = 0.1
    """Share of a new batch in the running statistics of batch normalisation (Keras's 0.99 is 0.01 here)."""
    norm_epsilon: float = 1e-3
    """Added to the variance in batch normalisation."""

    def __post_init__(self) -> None:
        _require(
            len(self.widths) >= 2 and all(width > 0 and width % 16 == 0 for width in self.widths),
            # PyTorch 2.13's convolutions crash on CPUs in training with fewer channels in channels-last memory.
            f"--model.widths {self.widths}: expected at least two positive multiples of 16",
        )


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How an image reaches the network, in training and ever after."""

    resize: int | None = None
    """None: native resolution, in tiles. A number: the whole image resized to a square of that side, as in the report."""
    tile: int = 512
    """Side of a tile, pixels; an image that is not larger is taken whole."""
    context: int = 32
    """Pixels of each tile's inner border that a neighbouring tile sees too, where the two are blended."""

    def __post_init__(self) -> None:
        _require(
            0 <= 2 * self.context < self.tile,
            f"--preprocess.context {self.context} leaves nothing of a tile of {self.tile}: expected less than half of it",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far training changes an image at random.

    Every probability is drawn once per crop. A range is the crop's own, from its darkest to its brightest level.
    """

    enabled: bool = True
    """Off: a plain random crop."""
    foreground_probability: float = 0.5
    """Probability that a crop is taken around a nucleus: in sparse images most others hold none."""
    flip: bool = True
    """Mirror, and turn by multiples of 90 degrees."""
    rotation_probability: float = 0.5
    """Probability of a free rotation of up to 45 degrees either way, on top."""
    scale: float = 1.4
    """Largest zoom; the smallest is its reciprocal. 1 is none."""
    brightness: float = 0.1
    """Largest change of brightness, as a fraction of the range."""
    contrast: float = 0.2
    """Largest relative change of contrast about the mean."""
    gamma: float = 1.4
    """Largest exponent of the tone curve; the smallest is its reciprocal. 1 is none."""
    invert_probability: float = 0.0
    """Probability of a negative: dark nuclei on white become bright nuclei on black."""
    hue_probability: float = 0.3
    """Probability of a change of hue and saturation."""
    hue: float = 0.06
    """Largest turn of the hue, as a fraction of the colour circle."""
    saturation: float = 0.3
    """Largest relative change of saturation."""
    blur_probability: float = 0.15
    """Probability of a Gaussian blur."""
    blur: float = 1.5
    """Largest standard deviation of the blur, pixels."""
    noise_probability: float = 0.15
    """Probability of Gaussian noise."""
    noise: float = 0.05
    """Largest standard deviation of the noise, as a fraction of the range."""

    def __post_init__(self) -> None:
        set_in_vain = [item.name for item in fields(self) if item.name != "enabled" and getattr(self, item.name) != item.default]
        _require(
            self.enabled or not set_in_vain,
            f"--augment.no-enabled and --augment.{'/'.join(set_in_vain)}: the second would be ignored, give one of them",
        )
        _require(
            self.scale >= 1 and self.gamma > 0, f"--augment.scale {self.scale}, --augment.gamma {self.gamma}: expected 1 or more"
        )


@dataclass(frozen=True, kw_only=True)
class InstanceConfig:
    """How a probability becomes instances."""

    threshold: float = 0.5
    """A pixel is nucleus from this probability on."""
    min_area: int = 0
    """Instances of fewer pixels are dropped."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. The defaults are the default recipe; `--recipe report` starts from the report's."""

    data: str
    """What `jobs/prepare.py` wrote, or a plain folder with images/ and masks/."""
    output: str
    """Where checkpoints, history, logs and the bundle go. The same command over the same output resumes."""
    name: str = "train"
    """Name of the run under the output."""
    workers: int = 1
    """Data-parallel workers."""
    min_workers: int | None = None
    """Smallest number of workers to go on with when nodes leave: an elastic run. None: exactly `workers`."""
    gpu: bool | None = None
    """One GPU for each worker. None: if the cluster has them."""
    cpus_per_worker: int = 1
    """CPUs that Ray sets aside for each worker."""
    threads: int | None = None
    """Threads that the model uses in a CPU worker. None: the cores of the node over the workers on it; Ray Data's decoding
    takes little of them."""
    init: str | None = None
    """Bundle whose weights are the start."""
    model: ModelConfig = field(default_factory=ModelConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    crop: int = 256
    """Side of a training crop, pixels, at native resolution."""
    loss: Literal["bce", "dice", "bce_dice", "focal", "focal_tversky", "tanimoto"] = "bce_dice"
    """What is minimised."""
    positive_weight: float = 1.0
    """Weight of nucleus pixels in bce, bce_dice and focal."""
    balance_area: float = 0.5
    """0: every image once an epoch. 1: every pixel equally often, a large image by many crops. Between: in between (exponent
    of the area)."""
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
    epochs: int = 24
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
    validation_interval: int = 4
    """Epochs between validations; the last epoch is always validated. Patience counts validations."""
    monitor: Metric = "f1"
    """Validation score that picks the best checkpoint and drives plateau and early stopping; the mean over images."""
    early_stopping_patience: int | None = None
    """Validations without improvement before training ends; None: never."""
    keep_checkpoints: int = 2
    """Best checkpoints to keep, beside the latest."""
    shuffle_buffer: int = 512
    """Crops among which the next one is drawn, per worker."""
    seed: int = 0
    """Seed of everything random. The same seed and number of workers repeat a run."""
    max_failures: int = 3
    """Times that lost workers or nodes are replaced before the run fails."""
    start_timeout_seconds: float = 120.0
    """How long to wait for workers that fit the cluster but do not start."""
    mlflow: str | None = None
    """MLflow tracking URI to log to (needs the extra `mlflow`)."""

    def __post_init__(self) -> None:
        _require(self.workers >= 1, f"--workers {self.workers}: expected at least 1")
        low = self.min_workers
        _require(
            low is None or 1 <= low <= self.workers,
            f"--min-workers {low}: expected 1 to {self.workers}, the number of --workers",
        )
        _require(self.epochs >= 1 and self.batch_size >= 1, "--epochs and --batch-size must be at least 1")
        for workers in range(low or self.workers, self.workers + 1):
            _require(
                self.batch_size % workers == 0,
                f"--batch-size {self.batch_size} is per step over all workers and does not divide by {workers}: "
                f"expected a multiple of every number of workers from {low or self.workers} to {self.workers}",
            )
        _require(self.learning_rate > 0, f"--learning-rate {self.learning_rate}: expected a positive number")
        stride = 2 ** (len(self.model.widths) - 1)
        _require(
            self.crop % stride == 0 and self.preprocess.tile % stride == 0,
            f"--crop {self.crop} and --preprocess.tile {self.preprocess.tile}: expected multiples of {stride}, "
            "the stride of the deepest level",
        )
        _require(self.validation_interval >= 1, "--validation-interval must be at least 1")
        _require(self.keep_checkpoints >= 1, "--keep-checkpoints must be at least 1")
        _require(
            self.ema_decay is None or 0 < self.ema_decay < 1, f"--ema-decay {self.ema_decay}: expected a number between 0 and 1"
        )
        for name in ("balance_area", "balance_modalities"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"--{name.replace('_', '-')} {value}: expected a number from 0 to 1")
        _require(
            self.preprocess.resize is None or self.balance_area == 0,
            f"--balance-area {self.balance_area} would be ignored with --preprocess.resize: set it to 0",
        )
        _require(
            self.optimizer == "adamw" or self.weight_decay == 0,
            f"--weight-decay {self.weight_decay} would be ignored by --optimizer adam: set it to 0, or use adamw",
        )
        _require(
            self.positive_weight == 1 or self.loss in ("bce", "bce_dice", "focal"),
            f"--positive-weight {self.positive_weight} would be ignored by --loss {self.loss}: "
            "leave it at 1, or choose bce, bce_dice or focal",
        )


def report_recipe(*, data: str, output: str) -> TrainConfig:
    """The report's own training: Keras's ResUNet at 256×256 with binary cross-entropy and Adam."""
    return TrainConfig(
        data=data,
        output=output,
        model=ModelConfig(norm_momentum=0.01, norm_epsilon=1e-3),
        preprocess=PreprocessConfig(resize=256),
        augment=AugmentConfig(enabled=False),
        balance_area=0.0,
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


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a bundle is scored against labelled images."""

    bundle: str
    """The bundle that `jobs/train.py` wrote."""
    data: str
    """What `jobs/prepare.py` wrote."""
    output: str
    """Where score.csv, scores.parquet, pictures/ and report.html go."""
    split: str = "test"
    """Split of the data that is scored."""
    protocol: Literal["native", "report"] = "native"
    """native: at the image's own resolution, with the bundle's threshold. report: as the report did it, image and mask
    resized bilinearly to 256×256, mask > 0.5, probability > 0.5."""
    flips: bool = False
    """Average the probability over the image's four mirror images: four times the work."""
    actors: int | None = None
    """Model processes. None: one for each GPU, or one that uses every core."""
    history: str | None = None
    """history.csv of the training run, to draw its curves. None: the one beside the bundle, if it is there."""


Config = TypeVar("Config")


def save_config(config: Any) -> str:
    """A resolved configuration as JSON text, which `load_config` reads."""
    return json.dumps(asdict(config), indent=2)


def load_config(text: str, *, kind: type[Config], source: str) -> Config:
    """The configuration in a JSON text.

    Raises:
        ConfigError: a field is unknown, missing, or of the wrong type.
    """
    try:
        return TypeAdapter(kind).validate_json(text, extra="forbid")
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{source} is not a saved {kind.__name__}: {problems}") from None
