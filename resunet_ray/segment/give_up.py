"""Giving a run up: everything that it wrote is deleted."""

from resunet_ray import storage
from resunet_ray.config import GiveUpConfig
from resunet_ray.errors import InputError
from resunet_ray.segment import layout


def give_up(config: GiveUpConfig) -> None:
    """Delete everything that one run wrote, so that its images are new again.

    The rows of images/ are deleted first: while one of them is there, its image counts as done.

    Raises:
        InputError: the output has no run of this name.
        LeaseError: another run is writing to the output.
    """
    output = storage.absolute(config.output).rstrip("/")
    if config.run not in storage.list_folders(storage.join(output, layout.RUNS)):
        raise InputError(
            f"{output} has no run {config.run}: expected the name of a folder in {layout.RUNS}/"
        )
    with storage.hold_output(config, output):
        kinds = [
            storage.join(layout.EXPORTS, kind)
            for kind in storage.list_folders(storage.join(output, layout.EXPORTS))
        ]
        for folder in (layout.IMAGES, layout.INSTANCES, *kinds, layout.REGIONS, layout.RUNS):
            storage.delete_folder(storage.join(output, folder, config.run))
