"""Standard output and standard error of a job, kept free of what Ray prints there."""

import io
import logging
import os
import re
import shutil
import subprocess
import sys
from typing import TextIO

from resunet_ray.cluster import log_folder
from resunet_ray.progress import is_verbose

logger = logging.getLogger(__name__)

_DEATH = re.compile(r"\(raylet\).*\b(died|killed|memory)\b")  # of one of Ray's processes
_NATIVE_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # Ray's setting for which lines its C++ part writes
_NATIVE_LINE = r"^\[[-0-9 :,]* [DIWE] [0-9 ]*\] [a-z_]*\.cc:"


def hide_native_lines() -> None:
    """Keep the lines of Ray's C++ part off standard error, unless its log level was set.

    Ray logs remarks as errors, for instance for every actor of Ray Data. Its only setting is a
    level, which it announces by a line of its own. A separate process filters the lines, so that a
    crash still prints its last words; Python's own standard error bypasses it.
    """
    grep = shutil.which("grep")
    if grep is None or _NATIVE_LEVEL in os.environ:
        return
    sys.stderr.flush()
    stderr = os.dup(sys.stderr.fileno())
    command = [grep, "--line-buffered", "--invert-match", "--extended-regexp", _NATIVE_LINE]
    # In its own session it survives Ctrl-C, and ends with the last process that can write to it.
    filtered = subprocess.Popen(  # noqa: S603 (grep)
        command, stdin=subprocess.PIPE, stdout=stderr, stderr=stderr, start_new_session=True
    )
    assert filtered.stdin is not None, "it is a pipe"
    sys.stderr = os.fdopen(
        stderr, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors
    )
    os.dup2(filtered.stdin.fileno(), 2)
    filtered.stdin.close()


class JobOutput(io.TextIOBase):
    """Standard output while a job runs.

    Once Ray is running, standard output is reserved for the JSON line, and what Ray prints goes to
    the log.
    """

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def isatty(self) -> bool:
        """Whether a person sees what is printed."""
        return log_folder() is None and self._stdout.isatty()

    def fileno(self) -> int:
        """Return the file descriptor of standard output."""
        return self._stdout.fileno()

    def write(self, text: str) -> int:
        """Print a text, or log the lines of it that matter."""
        if log_folder() is None:  # help, the doctor's page
            return self._stdout.write(text)
        for line in filter(str.strip, text.splitlines()):
            if is_verbose() or _DEATH.search(line):
                logger.warning("%s", line)
        return len(text)
