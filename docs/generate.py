"""Write the pages of docs/ that follow from the code, and the picture of the README.

python docs/generate.py
"""

import inspect
import itertools
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from resunet_ray import schema
from resunet_ray.bundle import load_bundle
from resunet_ray.config import (
    DashboardConfig,
    DemoConfig,
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
from resunet_ray.config.flags import Flag, list_flags
from resunet_ray.config.layouts import PRESETS, ROLES
from resunet_ray.data.synthetic import generate_image
from resunet_ray.pictures import draw_outlines

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
    "demo.py": DemoConfig,
}
TABLES = {
    "DATASET": "SPLIT-00000.parquet … (prepare)",
    "REJECTS": "rejects.parquet (prepare)",
    "SCORES": "scores.parquet (evaluate)",
    "OUTCOMES": "outcomes.parquet (evaluate)",
    "TRIALS": "trials.parquet and trials.csv (tune)",
    "REGIONS": "regions/RUN/CHUNK.parquet (segment)",
    "IMAGES": "images/RUN/PART.parquet (segment)",
    "INSTANCES": "instances/RUN/PART.parquet (segment)",
}

_REMARK = "`docs/generate.py` writes this page."
_COLUMN = re.compile(r'^ +\("(\w+)", .*\),  # (.*)$', re.MULTILINE)
_BLOCK = re.compile(r"^(\w+)(?:: [^=]+)? = (.*?)(?=^\w|\Z)", re.MULTILINE | re.DOTALL)


def describe_tables() -> str:
    """Describe every column of every table, with its comment in schema.py."""
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
    """Describe every flag of every job, with the text below its field."""
    about = "Each job shows its everyday flags with `--help` and all of these with `--help-all`."
    page = ["# The jobs and their flags", f"{_REMARK} {about}"]
    for name, kind in JOBS.items():
        page += [f"## jobs/{name}", " ".join((kind.__doc__ or "").split())]
        flags = list_flags(kind)
        page += [show_flags(flag for flag in flags if not flag.tuning)]
        if any(flag.tuning for flag in flags):
            page += ["Only in `--help-all`:", show_flags(flag for flag in flags if flag.tuning)]
    return "\n\n".join(page) + "\n"


def describe_datasets() -> str:
    """Describe what a pattern can find, and the published data sets whose layout is known."""
    about = (
        "`jobs/prepare.py --layout` takes the name of one of these data sets, or patterns like "
        "theirs ([how to write them](guide.md#data-sets))."
    )
    page = [
        "# Data sets",
        f"{_REMARK} {about}",
        "\n".join(
            ["| pattern | finds |", "|---|---|"]
            + [f"| `{role}=` | {finds} |" for role, finds in ROLES.items()]
        ),
    ]
    for name, preset in PRESETS.items():
        page += [
            f"## {name}",
            f"{preset.title}. {preset.facts}",
            "\n".join(["```", *preset.words, "```"]),
            f"Layout: {preset.source}. Licence: {preset.licence}.",
        ]
    return "\n\n".join(page) + "\n"


def show_flags(flags: Iterable[Flag]) -> str:
    """Return a table with one row per flag, below its heading."""
    rows = ["| flag | default | |", "|---|---|---|"]
    for heading, group in itertools.groupby(flags, key=lambda flag: flag.heading):
        rows.append(f"| **{heading.value}** | | |")
        for flag in group:
            names = ", ".join(f"`{name}`" for name in flag.names)
            about = flag.about.replace("|", "\\|")
            rows.append(f"| {names} | {show_default(flag)} | {about} |")
    return "\n".join(rows)


def show_default(flag: Flag) -> str:
    """Return the default as a cell; empty if the text says what it means."""
    if flag.required:
        return "required"
    if flag.default in (None, ()):
        return ""
    return f"`{flag.default}`".replace(f"`{NODE_FOLDER}`", "the node's /tmp")


def draw_picture(path: Path) -> None:
    """Draw two generated images with outlines of the nuclei that the shipped bundle finds."""
    shown = []
    for modality, seed in (("fluorescence", 4), ("stained", 1)):
        image, _ = generate_image(
            220, 400, modality=modality, num_nuclei=45, rng=np.random.default_rng(seed)
        )
        labels = load_bundle("nuclei").segment(image).labels
        shown.append(draw_outlines(image, labels, colour=(255, 210, 0)))
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(np.hstack(shown), cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    (DOCS / "tables.md").write_text(describe_tables())
    (DOCS / "jobs.md").write_text(describe_jobs())
    (DOCS / "datasets.md").write_text(describe_datasets())
    if sys.argv[1:] != ["--pages"]:
        draw_picture(DOCS / "pictures" / "nuclei.png")
