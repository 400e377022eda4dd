"""The exceptions that this package raises on purpose.

    ResUNetRayError
    ├── ConfigError      a setting is wrong, contradictory, or would be ignored      exit 2
    ├── InputError       a file or a data set is missing or not what the job needs   exit 2
    │   ├── ImageError   one image cannot be decoded, or must not be                 row of rejects
    │   ├── UnclearError one file is missing or denied, perhaps only now             tried again
    │   └── ChangedError one file is no longer the one that was listed               listed anew
    ├── LeaseError       another run is writing to this output                       exit 0
    ├── ResourceError    the cluster or the storage cannot give what the job needs   exit 2
    └── RunError         the work failed after it had started                        exit 1

A LeaseError exits with 0 because the other run is doing the work.

Each exception takes exactly one string, so that it survives pickling between Ray's processes. The
string names the thing, what was found, what was expected, and what to do.
"""


class ResUNetRayError(Exception):
    """Base class of every exception that this package raises on purpose."""

    exit_code = 1


class ConfigError(ResUNetRayError):
    """A setting is wrong, contradicts another, or would be ignored."""

    exit_code = 2


class InputError(ResUNetRayError):
    """A file or a data set is missing or is not what the job needs."""

    exit_code = 2


class ImageError(InputError):
    """One image cannot be decoded, or must not be."""


class UnclearError(InputError):
    """One file is missing or denied, for a reason that may pass: no verdict on the file."""


class ChangedError(InputError):
    """One file is no longer the one that was listed: no verdict on what was listed."""


class LeaseError(ResUNetRayError):
    """Another run is writing to this output."""

    exit_code = 0


class ResourceError(ResUNetRayError):
    """The cluster or the storage cannot give what the job needs."""

    exit_code = 2


class RunError(ResUNetRayError):
    """The work failed after it had started."""
