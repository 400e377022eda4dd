"""The exceptions that this package raises for its users.

    ResUNetRayError
    ├── ConfigError      a setting is wrong, contradictory, or would be ignored          exit 2
    ├── InputError       a file or data set is not what the job needs                    exit 2
    │   └── ImageError   one image cannot be decoded, or must not be                     (a row of rejects)
    ├── LeaseError       another run writes to this output                               exit 0: it does the work
    ├── ResourceError    the cluster or the storage cannot give what the job asks for    exit 2
    └── RunError         the work itself went wrong after it had started                 exit 1

Each takes exactly one string, so that it survives the trip between Ray's processes. The string names the thing, what was
found, what was expected, and what to do.
"""


class ResUNetRayError(Exception):
    """Anything that this package raises on purpose."""

    exit_code = 1


class ConfigError(ResUNetRayError):
    """A setting is wrong, contradicts another, or would be ignored."""

    exit_code = 2


class InputError(ResUNetRayError):
    """A file or a data set is missing or is not what the job needs."""

    exit_code = 2


class ImageError(InputError):
    """One image cannot be decoded, or must not be."""


class LeaseError(ResUNetRayError):
    """Another run writes to this output."""

    exit_code = 0


class ResourceError(ResUNetRayError):
    """The cluster or the storage cannot give what the job asks for."""

    exit_code = 2


class RunError(ResUNetRayError):
    """The work itself went wrong after it had started."""
