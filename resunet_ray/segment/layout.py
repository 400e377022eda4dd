"""The layout of an output: the only module that knows its folders and file names.

OUTPUT/regions/RUN/CHUNK.parquet      masks and nuclei, region by region
OUTPUT/instances/RUN/PART.parquet     nuclei
OUTPUT/images/RUN/PART.parquet        images that are done
OUTPUT/runs/RUN/plan/FILE.parquet     what a run has to do
OUTPUT/runs/RUN/run.json              its configuration and result
OUTPUT/exports/KIND/RUN/…             files for other programs
"""

from resunet_ray import storage

REGIONS, INSTANCES, IMAGES, RUNS, EXPORTS = "regions", "instances", "images", "runs", "exports"
RUN_FILE = "run.json"

_PLAN = "plan"


def run_folder(output: str, run_id: str) -> str:
    """Return the folder of a run's plan and record."""
    return storage.join(output, RUNS, run_id)


def record_uri(output: str, run_id: str) -> str:
    """Return the file with a run's configuration and result."""
    return storage.join(run_folder(output, run_id), RUN_FILE)


def plan_uri(folder: str, number: int) -> str:
    """Return a file of the plan in a run's folder."""
    return storage.join(folder, _PLAN, f"{number:05d}.parquet")


def chunk_uri(output: str, run_id: str, chunk: int) -> str:
    """Return the file of a chunk's regions."""
    return storage.join(output, REGIONS, run_id, f"{chunk:06d}.parquet")


def part_uri(output: str, table: str, run_id: str, part: int) -> str:
    """Return the file of `images` or `instances` for one part of the plan."""
    return storage.join(output, table, run_id, f"{part:05d}.parquet")
