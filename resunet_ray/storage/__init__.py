"""Storage behind a path or a URI: listing, reading, and writes that are all or nothing."""

from resunet_ray.storage.faults import mask_credentials
from resunet_ray.storage.files import (
    attempt,
    check_writable,
    clear_parts,
    delete_file,
    delete_folder,
    exists,
    is_file,
    list_files,
    list_folders,
    read_bytes,
    require_folder,
    upload,
    write_bytes,
)
from resunet_ray.storage.lease import NO_LEASE, Lease, hold_lease, hold_output
from resunet_ray.storage.locations import absolute, join, open_filesystem, parent, resolve
from resunet_ray.storage.names import csv_cell, file_name
from resunet_ray.storage.parts import is_part, join_fingerprints, join_folder
from resunet_ray.storage.portable import open_portable
from resunet_ray.storage.reader import Reader, read_listed
from resunet_ray.storage.space import cache_folder
from resunet_ray.storage.staging import Cache
from resunet_ray.storage.tables import read_metadata, read_table, write_table
from resunet_ray.storage.walk import FileStatus, look_up, walk_files

__all__ = [
    "NO_LEASE",
    "Cache",
    "FileStatus",
    "Lease",
    "Reader",
    "absolute",
    "attempt",
    "cache_folder",
    "check_writable",
    "clear_parts",
    "csv_cell",
    "delete_file",
    "delete_folder",
    "exists",
    "file_name",
    "hold_lease",
    "hold_output",
    "is_file",
    "is_part",
    "join",
    "join_fingerprints",
    "join_folder",
    "list_files",
    "list_folders",
    "look_up",
    "mask_credentials",
    "open_filesystem",
    "open_portable",
    "parent",
    "read_bytes",
    "read_listed",
    "read_metadata",
    "read_table",
    "require_folder",
    "resolve",
    "upload",
    "walk_files",
    "write_bytes",
    "write_table",
]
