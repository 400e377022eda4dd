"""The command line of every job: flags in, one JSON line and an exit code out."""

from resunet_ray.command_line.arguments import read_config
from resunet_ray.command_line.job import run_job

__all__ = ["read_config", "run_job"]
