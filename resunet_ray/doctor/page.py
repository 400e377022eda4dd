"""The page on standard error: a line for each check, and how to fix what is wrong."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from resunet_ray.doctor.check import Finding, Status

_STYLES: dict[Status, str] = {
    "ok": "green",
    "warning": "yellow",
    "failed": "bold red",
    "not asked": "dim",
}
_INDENT = " " * 27


def print_page(findings: Sequence[Finding]) -> None:
    """Print the findings in order; neighbours that say the same share a line."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for (status, found), alike in groupby(findings, key=lambda finding: finding[1:3]):
        first, *others = alike
        names = ", ".join(finding.check for finding in (first, *others)) + (": " if others else "")
        console.print(Text(f"{status:<11}", _STYLES[status]) + Text(f"{names:<16}{found}"))
        if first.fix:
            console.print(Text(f"{_INDENT}expected: {first.expected}\n{_INDENT}fix: {first.fix}"))
    counts = Counter(finding.status for finding in findings)
    console.print(", ".join(f"{counts[status]} {status}" for status in _STYLES if counts[status]))
