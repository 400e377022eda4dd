"""The page on standard error: a line for each check, and below what is not in order what was expected and what to do."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from resunet_ray.doctor.finding import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "not asked": "dim"}
_INDENT = " " * 27


def print_page(findings: Sequence[Finding]) -> None:
    """Prints the findings, in their order."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for finding in findings:
        console.print(Text(f"{finding.status:<11}", style=_COLOURS[finding.status]) + Text(f"{finding.check:<16}{finding.found}"))
        if finding.status in ("warning", "failed"):
            console.print(Text(f"{_INDENT}expected: {finding.expected}\n{_INDENT}fix: {finding.fix}"))
