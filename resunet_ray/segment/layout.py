"""Where an output keeps what: the one place that knows its folders and file names.

OUTPUT/regions/RUN/CHUNK.parquet      masks and nuclei, region by region
OUTPUT/instances/RUN/PART.parquet     nuclei
OUTPUT/images/RUN/PART.parquet        images that are done
OUTPUT/runs/RUN/plan/FILE.parquet     what a run has to do
OUTPUT/runs/RUN/run.json              what it is, and what became of it
OUTPUT/exports/KIND/RUN/…             files for other programs
"""

from resunet_ray import storage

REGIONS, INSTANCES, IMAGES, RUNS, EXPORTS = "regions", "instances", "images", "runs", "exports"
RUN_FILE = "run.json"

_PLAN = "plan"


def run_folder(output: str, run_id: str) -> str:
    """A run's own: its plan and its record."""
    return storage.join(output, RUNS, run_id)


def record_uri(output: str, run_id: str) -> str:
    """What a run is, and what became of it."""
    return storage.join(run_folder(output, run_id), RUN_FILE)


def plan_uri(folder: str, number: int) -> str:
    """A file of the plan, below a run's folder."""
    return storage.join(folder, _PLAN, f"{number:05d}.parquet")


def chunk_uri(output: str, run_id: str, chunk: int) -> str:
    """The regions of a chunk."""
    return storage.join(output, REGIONS, run_id, f"{chunk:06d}.parquet")


def part_uri(output: str, table: str, run_id: str, part: int) -> str:
    """A file of `images` or `instances`: what was committed together."""
    return storage.join(output, table, run_id, f"{part:05d}.parquet")
