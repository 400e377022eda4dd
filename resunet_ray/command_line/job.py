"""A job from its start to its exit code: the log, the errors, and one JSON line at the end."""

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from resunet_ray import errors, storage
from resunet_ray.cluster import disconnect, log_folder
from resunet_ray.command_line.arguments import VERBOSE
from resunet_ray.command_line.streams import JobOutput, hide_native_lines
from resunet_ray.errors import LeaseError, ResUNetRayError
from resunet_ray.progress import LogHandler, is_verbose, set_verbose

_BAD_USAGE = 2  # the exit code of tyro and argparse
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in the text of Ray's exceptions, even in a file
_RAY_ADVICE = "\nFailed to apply UDF transform"  # what Ray Data appends to our exceptions


def run_job(name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Run a job, print its JSON line and exit.

    The exit code is 0 if the job is done or another run is doing it, 1 if it failed, 2 for bad
    usage, configuration, input or resources.

    Args:
        name: of the job.
        work: does it, and returns the values of the JSON line; `exit_code` among them is taken out.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
    if VERBOSE in sys.argv[1:]:
        set_verbose()
    else:
        hide_native_lines()
    if not sys.stderr.isatty():
        # Ray colours what it passes on, even in a file.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        with redirect_stdout(JobOutput(sys.stdout)):
            result = work()
        code = int(result.pop("exit_code", 0))
        line = {"status": "done" if code == 0 else "failed", **result}
    except SystemExit as leaving:
        if not leaving.code:  # help
            raise
        code, line = _describe_exit(leaving)
    except Exception as error:  # noqa: BLE001 (a caller that waits for the JSON line must get one)
        code, line = _describe_error(error)
        _log_error(name, error, line)
    disconnect()  # what Ray still logs comes before the JSON line
    sys.stderr.flush()
    print(json.dumps({"job": name, **line}), flush=True)
    sys.exit(code)


def _describe_exit(leaving: SystemExit) -> tuple[int, dict[str, Any]]:
    """Describe why something below the job left the process: its exit code and JSON line."""
    if leaving.code == _BAD_USAGE:
        return 2, _failure("ConfigError", "bad usage: see standard error")
    # Ray turns SIGTERM into an exit with its number.
    message = f"stopped by a signal (exit code {leaving.code}): run the same command to resume"
    return 1, _failure("RunError", message)


def _describe_error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Describe an error: its exit code and JSON line."""
    if own := _find_own(error):
        kind, message = own
        if kind is LeaseError:
            return kind.exit_code, {"status": "leased", "message": message}
        return kind.exit_code, _failure(kind.__name__, message)
    lines = _clean(str(error)).strip().splitlines()
    return 1, _failure(type(error).__name__, lines[-1] if lines else "")


def _failure(error: str, message: str) -> dict[str, Any]:
    return {"status": "failed", "error": error, "message": message}


def _log_error(name: str, error: Exception, line: dict[str, Any]) -> None:
    own = _find_own(error)
    if own is None:
        print(_clean("".join(traceback.format_exception(error))), file=sys.stderr)
    print(f"{name}: {line['message']}", file=sys.stderr)
    folder = log_folder()
    if (own is None or own[0].exit_code == 1) and folder is not None and not is_verbose():
        print(f"Ray's log, {folder} on each node, has more; so has --verbose", file=sys.stderr)


def _clean(text: str) -> str:
    return _COLOUR.sub("", storage.mask_credentials(text))


def _find_own(error: Exception) -> tuple[type[ResUNetRayError], str] | None:
    """Find the kind and message of our own error, however Ray has wrapped it; None: not ours."""
    if isinstance(error, ResUNetRayError):
        # From a task, the error's own text is a traceback; its cause has the message.
        cause = getattr(error, "cause", error)
        return type(cause), str(cause).partition(_RAY_ADVICE)[0]
    # From an actor that could not start, the error ends a traceback.
    last = str(error).rpartition(f"\n{errors.__name__}.")[2]
    kind, _, message = last.partition(": ")
    return (getattr(errors, kind), message.strip()) if hasattr(errors, kind) else None
