"""What a check found: a name, a verdict, what was found, what was expected, and what to do."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from resunet_ray import storage
from resunet_ray.errors import ResUNetRayError

Status = Literal["ok", "warning", "failed", "not asked"]

_MOST_NODES = 4  # that one finding names; the page is one page
_MOST_CHARACTERS = 600


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the page."""

    check: str
    status: Status
    found: str
    expected: str = ""
    fix: str = ""


Check = tuple[str, Callable[[], Iterable[Finding]]]
"""The name of a check, or of the first of several, and what looks."""


def ok(check: str, found: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check=check, status="ok", found=found)


def not_asked(check: str, why: str) -> Finding:
    """Nobody looked."""
    return Finding(check=check, status="not asked", found=why)


def failed(check: str, found: str, *, expected: str, fix: str) -> Finding:
    """Jobs will go wrong."""
    return Finding(check=check, status="failed", found=found, expected=expected, fix=fix)


def warning(check: str, found: str, *, expected: str, fix: str) -> Finding:
    """Jobs will work, perhaps slowly, perhaps not for long."""
    return Finding(check=check, status="warning", found=found, expected=expected, fix=fix)


def judge(
    check: str,
    wrong: Mapping[str, str],
    *,
    poor: Mapping[str, str] = MappingProxyType({}),
    otherwise: str,
    expected: str,
    fix: str,
) -> Finding:
    """One finding about all nodes.

    Args:
        check: its name.
        wrong: what makes it a failure, by node.
        poor: what makes it a warning, where nothing is wrong.
        otherwise: what was found where neither is.
        expected: of every node.
        fix: what to do about either.
    """
    complaints = wrong or poor
    if not complaints:
        return ok(check, otherwise)
    shown = [f"{node}: {text}" for node, text in list(complaints.items())[:_MOST_NODES]]
    more = (
        [f"and {count(len(complaints) - _MOST_NODES, 'more node')}"]
        if len(complaints) > _MOST_NODES
        else []
    )
    return (failed if wrong else warning)(
        check, "; ".join(shown + more), expected=expected, fix=fix
    )


def count(number: float, noun: str) -> str:
    """So many of something."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def describe(error: BaseException) -> str:
    """What an error says, on one line and without credentials."""
    cause = getattr(error, "cause", None) or error
    text = " ".join(storage.mask_credentials(str(cause)).split())
    if not isinstance(cause, ResUNetRayError):
        text = f"{type(cause).__name__}: {text}"
    return (
        text
        if len(text) <= _MOST_CHARACTERS
        else f"{text[: _MOST_CHARACTERS // 2]} … {text[-_MOST_CHARACTERS // 2 :]}"
    )
