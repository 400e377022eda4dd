"""The page on standard error: a line for each check, and below what is not in order what was expected and what to do."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from resunet_ray.doctor.finding import Finding, Status

_COLOURS: dict[Status, str] = {
    "ok": "green",
    "warning": "yellow",
    "failed": "bold red",
    "not asked": "dim",
}
_INDENT = " " * 27


def print_page(findings: Sequence[Finding]) -> None:
    """Prints the findings, in their order; checks that nobody asked for, and that for the same reason, share a line."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for (status, found), alike in groupby(findings, key=lambda item: (item.status, item.found)):
        same = list(alike)
        names = ", ".join(item.check for item in same) + (": " if len(same) > 1 else "")
        console.print(Text(f"{status:<11}", style=_COLOURS[status]) + Text(f"{names:<16}{found}"))
        if status in ("warning", "failed"):
            console.print(
                Text(f"{_INDENT}expected: {same[0].expected}\n{_INDENT}fix: {same[0].fix}")
            )
    counts = Counter(item.status for item in findings)
    console.print(", ".join(f"{counts[status]} {status}" for status in _COLOURS if counts[status]))
