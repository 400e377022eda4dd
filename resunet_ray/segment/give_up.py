"""Giving a run up: all that it wrote goes."""

from dataclasses import replace

from resunet_ray import storage
from resunet_ray.config import GiveUpConfig
from resunet_ray.errors import InputError
from resunet_ray.segment.commit import INSTANCES_FOLDER
from resunet_ray.segment.export import EXPORTS_FOLDER
from resunet_ray.segment.ledger import IMAGES_FOLDER
from resunet_ray.segment.region import REGIONS_FOLDER
from resunet_ray.segment.run import RUNS_FOLDER, hold_lease


def give_up(config: GiveUpConfig) -> None:
    """Removes all that one run wrote, so that its images are new again.

    The rows of its images go first: as long as one of them is there, its image would count as done.

    Raises:
        InputError: there is no such run.
        LeaseError: another run is writing to the output.
    """
    output = storage.absolute(config.output).rstrip("/")
    if config.run not in storage.list_folders(storage.join(output, RUNS_FOLDER)):
        raise InputError(f"{output} has no run {config.run}: expected the name of a folder in {RUNS_FOLDER}/")
    with hold_lease(replace(config, output=output)):
        kinds = [storage.join(EXPORTS_FOLDER, kind) for kind in storage.list_folders(storage.join(output, EXPORTS_FOLDER))]
        for folder in (IMAGES_FOLDER, INSTANCES_FOLDER, *kinds, REGIONS_FOLDER, RUNS_FOLDER):
            storage.delete(storage.join(output, folder, config.run))
