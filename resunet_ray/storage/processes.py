"""Processes of this machine, told apart even after their numbers were used again."""

import os
from pathlib import Path

_PROC = Path("/proc")


def describe_process(pid: int) -> list[str] | None:
    """Identify a process uniquely: machine boot, PID namespace, PID and start time.

    Returns None if the system does not tell. Only Linux does, and not always for another user's
    process.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = str((_PROC / "self/ns/pid").readlink())
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # proc(5): state is field 3, starttime is field 22.
    return [boot, namespace, str(pid), "ended" if fields[0] == "Z" else fields[19]]


def is_dead(process: list[str] | None) -> bool:
    """Whether a described process ran on this machine, in this container if any, and has ended."""
    own = describe_process(os.getpid())
    if process is None or own is None or process[:2] != own[:2]:
        return False
    try:
        os.kill(int(process[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return describe_process(int(process[2])) not in (None, process)
