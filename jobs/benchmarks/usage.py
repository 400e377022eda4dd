"""Peak memory and CPU time of a job, with all the processes that it started (Linux)."""

import contextlib
import os
import threading
from pathlib import Path


class PeakMemory:
    """The largest sum of proportional set sizes of this process and its descendants.

    Sampled twice a second.
    """

    def __init__(self, *, alone: bool = False) -> None:
        """Measure this process alone, or its descendants as well."""
        self._alone = alone

    def __enter__(self) -> "PeakMemory":
        self.gib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.5):
            self.gib = max(self.gib, sum(_pss_kib(pid) for pid in self._processes()) / 2**20)

    def _processes(self) -> list[int]:
        return [os.getpid()] if self._alone else _family(os.getpid())


def core_seconds() -> float:
    """Return the CPU time of this process and its descendants, also of those that have ended."""
    ticks = 0
    for pid in _family(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
            ticks += sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def _family(root: int) -> list[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = stat.read_text().split(" (", 1)
        except OSError:  # it has ended
            continue
        parents[int(pid)] = int(rest.rsplit(") ", 1)[1].split()[1])
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family)


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
