"""What the tests on the cluster of several nodes share: data, a training, its scores."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodes import Nodes
from support import SMALL

from resunet_ray import storage


@dataclass
class Pipeline:
    """What went through a cluster: jobs from a clean clone, locations in object storage."""

    data: str
    training: list[str]
    """The flags of the training, but for its output."""
    output: str
    """Where it went."""
    trained: dict[str, Any]
    """Its last line."""
    evaluated: dict[str, Any]
    """The last line of the evaluation."""

    @property
    def bundle(self) -> str:
        return str(self.trained["bundle"])


def submit_pipeline(s3: str, *, images: Path, nodes: Nodes) -> Pipeline:
    """Submits what prepares a folder of pairs with metadata.csv, trains on it and scores that."""
    nodes.restore()
    for path in sorted(images.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"{s3}/pipeline/raw/{path.relative_to(images)}", path.read_bytes())
    data, output = f"{s3}/pipeline/data", f"{s3}/pipeline/run"
    flags = ["--metadata", f"{s3}/pipeline/raw/metadata.csv", "--rows-per-group", "2"]
    code, line, shown = nodes.submit(
        "prepare", "--input", f"{s3}/pipeline/raw", "--output", data, *flags
    )
    assert (code, line["images"], line["splits"]) == (0, 20, {"test": 4, "train": 12, "val": 4}), (
        shown
    )
    training = [
        *SMALL,
        "--data",
        data,
        "--learning-rate",
        "1e-2",
        "--ema-decay",
        "0.9",
        "--warmup-epochs",
        "0",
    ]
    training += ["--epochs", "12", "--validation-interval", "2", "--keep-checkpoints", "9"]
    training += ["--workers", "2", "--cpus-per-worker", "2"]
    code, trained, shown = nodes.submit("train", *training, "--output", output)
    assert (code, trained["epochs"]) == (0, 12), shown
    scores = [
        "--bundle",
        str(trained["bundle"]),
        "--data",
        data,
        "--output",
        f"{s3}/pipeline/scores",
    ]
    code, evaluated, shown = nodes.submit("evaluate", *scores)
    assert code == 0, shown
    assert "only-on-loopback" not in shown
    return Pipeline(data, training, output, trained, evaluated)
