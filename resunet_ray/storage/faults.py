"""What an error of a storage means: the storage is away, it refuses this account, or one file.

Only here are errors of filesystems told apart. Those of object stores are reported as text.
"""

import errno
import re
import sys

from resunet_ray.errors import InputError, ResourceError, UnclearError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_AWAY = (
    *(errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN, errno.EPIPE),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
)
_AWAY_TEXT = re.compile(
    "NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|REQUEST_TIMEOUT"
    r"|RequestTimeout|HTTP (?:status )?(?:408|429|5\d\d)"
)
_REFUSED_TEXT = re.compile(
    "Expired|EXPIRED|TokenRefreshRequired|InvalidToken|INVALID_CLIENT_TOKEN_ID|INVALID_SIGNATURE"
    "|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT|TimeTooSkewed|TIME_TOO_SKEWED"
    "|InvalidAccessKeyId|SignatureDoesNotMatch|UnrecognizedClient"
    # The answer to a HEAD request has no body that would say why.
    "|MISSING_AUTHENTICATION_TOKEN|HTTP (?:status )?400"
)
_DENIED_TEXT = re.compile(r"ACCESS_DENIED|HTTP (?:status )?40[13]")


_SECRET = re.compile(
    r"([?&][^=&\s]*(?:key|secret|token|signature|credential|password|sig)[^=&\s]*=)[^&\s]+",
    re.IGNORECASE,
)


class AwayError(ResourceError):
    """A storage does not answer; it may be back soon."""


class RefusedError(ResourceError):
    """A storage refuses this account; its credentials may be renewed soon."""


class DeniedError(UnclearError):
    """A storage that has let this process in denies it one location."""


_ATTEMPTS = ((AwayError, sys.maxsize), (RefusedError, 4), (DeniedError, 3))
"""How often to try what ends in one of these errors."""


def mask_credentials(text: str) -> str:
    """Return the text with `***` for the secrets in its URIs.

    Hidden are whatever is between `://` and `@`, and keys, tokens and signatures in a query.
    """
    return _SECRET.sub(r"\1***", re.sub(r"://([^/@\s]*:[^@\s]*|[^/@\s]+)@", "://***@", text))


def may_pass(error: Exception, *, attempt: int) -> bool:
    """Whether to try again after the error of an attempt, numbered from 0."""
    return any(isinstance(error, kind) and attempt + 1 < most for kind, most in _ATTEMPTS)


def explain(uri: str, error: OSError, *, text: str, answers: bool) -> Exception:
    """Return the error that says what an operation met.

    Args:
        uri: the location.
        error: as raised by the filesystem.
        text: what it says, without credentials.
        answers: the storage has let this process in before.

    Returns:
        AwayError, RefusedError: the storage may be back; try again.
        ResourceError: it is full.
        UnclearError: this location is missing or denied, for a reason that may pass.
        InputError: it cannot be read or written.
    """
    if isinstance(error, FileNotFoundError):
        return UnclearError(f"{uri} does not exist")
    if error.errno in _FULL:
        return ResourceError(
            f"{uri} cannot be written: {text}. Free some space and run the same command again"
        )
    told = text.rpartition("AWS Error")[2]  # after the names of key and bucket
    if error.errno in _AWAY or _AWAY_TEXT.search(told):
        return AwayError(f"the storage of {uri} did not answer: {text}")
    if _REFUSED_TEXT.search(told):
        return RefusedError(
            f"the storage of {uri} refuses the credentials: {text}. Renew them, and run the same "
            "command again"
        )
    if isinstance(error, PermissionError):
        return UnclearError(f"{uri} cannot be read or written: {text}")
    if _DENIED_TEXT.search(told):
        # Without credentials, for instance because the instance's metadata service is busy,
        # everything is denied.
        return (
            DeniedError(f"{uri} cannot be read or written: {text}")
            if answers
            else RefusedError(f"the storage of {uri} does not let this account in: {text}")
        )
    return InputError(f"{uri} cannot be read or written: {text}")
