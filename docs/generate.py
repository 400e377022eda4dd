"""Writes the pages of docs/ that follow from the code, and the picture of the README.

python docs/generate.py
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import cv2
import numpy as np

from resunet_ray import schema
from resunet_ray.bundle import load_bundle
from resunet_ray.config import (
    DashboardConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    GiveUpConfig,
    PrepareConfig,
    SegmentConfig,
    SweepConfig,
    TrainConfig,
)
from resunet_ray.config.checks import NODE_FOLDER
from resunet_ray.data.synthetic import generate_image

DOCS = Path(__file__).parent
JOBS: dict[str, type[Any]] = {
    "prepare.py": PrepareConfig,
    "train.py": TrainConfig,
    "tune.py": SweepConfig,
    "dashboard.py": DashboardConfig,
    "evaluate.py": EvaluateConfig,
    "segment.py": SegmentConfig,
    "segment.py give-up": GiveUpConfig,
    "export.py": ExportConfig,
    "doctor.py": DoctorConfig,
}
TABLES = {
    "DATASET": "SPLIT-00000.parquet … (prepare)",
    "REJECTS": "rejects.parquet (prepare)",
    "SCORES": "scores.parquet (evaluate)",
    "TRIALS": "trials.parquet and trials.csv (tune)",
    "REGIONS": "regions/RUN/CHUNK.parquet (segment)",
    "IMAGES": "images/RUN/PART.parquet (segment)",
    "INSTANCES": "instances/RUN/PART.parquet (segment)",
}

_REMARK = "`docs/generate.py` writes this page."
_COLUMN = re.compile(r'^ +\("(\w+)", .*\),  # (.*)$', re.MULTILINE)
_BLOCK = re.compile(r"^(\w+)(?:: [^=]+)? = (.*?)(?=^\w|\Z)", re.MULTILINE | re.DOTALL)


def describe_tables() -> str:
    """Every column of every table, with what schema.py says of it."""
    source = inspect.getsource(schema)
    blocks = dict(_BLOCK.findall(source))
    page = ["# The tables", _REMARK]
    for name, title in TABLES.items():
        parts = [blocks[part] for part in re.findall(r"\*(_\w+)", blocks[name])]
        remarks = {
            column: remark
            for block in [*parts, blocks[name]]
            for column, remark in _COLUMN.findall(block)
        }
        (about,) = re.findall(rf'^{name} = .*?^"""(.*?)"""', source, re.MULTILINE | re.DOTALL)
        rows = [
            f"| `{field.name}` | {field.type} | {remarks.get(field.name, '')} |"
            for field in getattr(schema, name)
        ]
        page += [
            f"## {title}",
            " ".join(about.split()),
            "\n".join(["| column | type | |", "|---|---|---|", *rows]),
        ]
    return "\n\n".join(page) + "\n"


def describe_jobs() -> str:
    """Every flag of every job, with what its configuration says of it."""
    page = ["# The jobs and their flags", f"{_REMARK} `--help` of each job says the same."]
    for name, kind in JOBS.items():
        page += [f"## jobs/{name}", " ".join((kind.__doc__ or "").split())]
        page += ["\n".join(["| flag | default | |", "|---|---|---|", *list_flags(kind)])]
    return "\n\n".join(page) + "\n"


def list_flags(kind: type[Any], prefix: str = "") -> Iterator[str]:
    """One row a flag; those of a part of a configuration after its own."""
    remarks, hints, later = read_remarks(kind), get_type_hints(kind), []
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            part = "" if field.name == "training" else f"{prefix}{field.name}."
            later.append((hints[field.name], part))
            continue
        default = (
            "required"
            if field.default is MISSING
            else ""
            if field.default in (None, ())
            else f"`{field.default}`"
        )
        default = default.replace(NODE_FOLDER, "the node's /tmp")
        yield f"| `--{prefix}{field.name.replace('_', '-')}` | {default} | {remarks[field.name].replace('|', chr(92) + '|')} |"
    for part_kind, part in later:
        yield from list_flags(part_kind, part)


def read_remarks(kind: type[Any]) -> dict[str, str]:
    """The text below each field of a configuration."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    found = {}
    for item, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(item, ast.AnnAssign):
            text = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else ""
            )
            found[item.target.id] = " ".join(text.split())
    return found


def draw_picture(path: Path) -> None:
    """Two generated images and the outlines of what the bundle that ships finds in them."""
    shown = []
    for modality, seed in (("fluorescence", 4), ("stained", 1)):
        image, _ = generate_image(
            220, 400, modality=modality, num_nuclei=45, rng=np.random.default_rng(seed)
        )
        labels = load_bundle("nuclei").segment(image).labels
        marked = image.copy()
        for number in range(1, labels.max() + 1):
            outline, _ = cv2.findContours(
                (labels == number).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(marked, outline, -1, (255, 210, 0), 1)
        shown.append(marked)
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.hstack(shown), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    (DOCS / "tables.md").write_text(describe_tables())
    (DOCS / "jobs.md").write_text(describe_jobs())
    if sys.argv[1:] != ["--pages"]:
        draw_picture(DOCS / "pictures" / "nuclei.png")
