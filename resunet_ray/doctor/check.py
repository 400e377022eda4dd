"""What a check is and what it says, and how its verdicts on all nodes become one."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from resunet_ray import storage
from resunet_ray.config import DoctorConfig
from resunet_ray.errors import ResUNetRayError

Status = Literal["not asked", "ok", "warning", "failed"]

_FIXES = {
    "metadata service .* is busy": "Run the same command again. If it stays busy, start fewer "
    "processes per machine at once, or give them credentials in another way: web identity (EKS), "
    "or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    "Expired|TokenRefreshRequired|InvalidToken": "The credentials have expired. Renew them (`aws "
    "sso login`, or a new AWS_SESSION_TOKEN), here and on every node; nodes read variables only "
    "when they start. A profile or a role renews itself, so that long runs go on",
    "TimeTooSkewed|TIME_TOO_SKEWED": "Set the clock of this machine, and of every node, by a time "
    "server (`timedatectl set-ntp true`): it is too far from the store's for signatures",
}
"""By a pattern of what was said."""
_MOST_NODES = 4  # named in one finding: the page is one page
_MOST_CHARACTERS = 600


class Surroundings(NamedTuple):
    """Where a check looks: in the doctor's own process, or on a node."""

    config: DoctorConfig
    folder: str = ""
    """Where to write to the storage."""
    node: Mapping[str, Any] = {}
    """What `ray.nodes` says about the node; empty in the doctor's own process."""


class Verdict(NamedTuple):
    """What a check says. A warning: jobs work, perhaps slowly or not for long."""

    status: Status
    found: str
    fix: str = ""
    """Replaces the fix of the check."""


NOT_REACHED = Verdict("not asked", "what it needs was not reached")


class Finding(NamedTuple):
    """One line of the page; nothing is expected and nothing to fix where nothing is wrong."""

    check: str
    status: Status
    found: str
    expected: str
    fix: str


@dataclass(frozen=True)
class Check:
    """Something to look at. Texts name fields of the configuration in braces."""

    name: str
    group: str
    """Its checks are made one after the other, in a thread of their own."""
    judge: Callable[..., Verdict]
    expected: str
    fix: str
    alike: bool
    """What is found must be the same on all nodes."""

    def conclude(self, verdict: Verdict, config: DoctorConfig) -> Finding:
        """Return the line of the page, without credentials."""
        texts = [verdict.found, "", ""]
        if verdict.status in ("warning", "failed"):
            expected, fix = (text.format_map(asdict(config)) for text in (self.expected, self.fix))
            texts[1:] = [expected, verdict.fix or fix]
        return Finding(self.name, verdict.status, *map(storage.mask_credentials, texts))

    def merge(self, answers: Mapping[str, Any]) -> Verdict:
        """Return the worst of the verdicts on nodes, and name the nodes that it is about.

        Args:
            answers: by node, its verdict or what the judge takes.
        """
        if not answers:
            return NOT_REACHED
        verdicts = {
            name: answer if isinstance(answer, Verdict) else self.judge(*answer)
            for name, answer in answers.items()
        }
        worst = max((item.status for item in verdicts.values()), key=get_args(Status).index)
        found = {name: item.found for name, item in verdicts.items() if item.status == worst}
        texts = Counter(found.values())
        if worst == "ok" and len(texts) == 1:
            return Verdict(worst, f"{next(iter(texts))} ({count(len(found), 'node')})")
        rarest = sorted(found, key=lambda name: texts[found[name]])
        shown = [f"{name}: {found[name]}" for name in rarest[:_MOST_NODES]]
        if len(found) > _MOST_NODES:
            shown.append(f"and {count(len(found) - _MOST_NODES, 'more node')}")
        fix = next((item.fix for item in verdicts.values() if item.status == worst), "")
        return Verdict("failed" if self.alike else worst, "; ".join(shown), fix)


CHECKS: dict[str, Check] = {}
"""By name."""


def check(
    group: str, *, expected: str, fix: str, name: str = "", alike: bool = False
) -> Callable[[Callable[..., Verdict]], Callable[..., Verdict]]:
    """Make a function a check, called as the function is unless a name is given."""

    def declare(judge: Callable[..., Verdict]) -> Callable[..., Verdict]:
        called = name or judge.__name__.strip("_").replace("_", " ")
        CHECKS[called] = Check(called, group, judge, expected, fix, alike)
        return judge

    return declare


def run_checks(
    judges: Mapping[str, Callable[[Surroundings], Verdict]], place: Surroundings
) -> dict[str, Verdict]:
    """Return the verdicts by check; if the first cannot be made, the others are not asked."""
    verdicts: dict[str, Verdict] = {}
    for name, judge in judges.items():
        try:
            verdicts[name] = judge(place)
        except Exception as error:  # noqa: BLE001 (whatever goes wrong is what was found)
            verdicts[name] = Verdict("failed", describe(error), find_fix(error))
            if len(verdicts) == 1:
                return dict.fromkeys(judges, NOT_REACHED) | verdicts
    return verdicts


def find_fix(error: BaseException) -> str:
    """Return how to fix what a store or a metadata service said, or an empty text."""
    return next((fix for said, fix in _FIXES.items() if re.search(said, str(error))), "")


def rate(found: str, *, wrong: bool = False, doubtful: bool = False) -> Verdict:
    """Return a failure if `wrong`, else a warning if `doubtful`, else ok."""
    return Verdict("failed" if wrong else "warning" if doubtful else "ok", found)


def count(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural where needed."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def describe(error: BaseException) -> str:
    """Return an error's message on one line, without credentials."""
    cause = getattr(error, "cause", None) or error
    kind = "" if isinstance(cause, ResUNetRayError) else f"{type(cause).__name__}: "
    text = " ".join(storage.mask_credentials(f"{kind}{cause}").split())
    half = _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"
