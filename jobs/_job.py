"""What every job does alike: read its configuration, run, print one JSON line, exit with the code that the design gives."""

import argparse
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any, TextIO, TypeVar

import tyro

from resunet_ray import errors, storage
from resunet_ray.cluster import disconnect, log_folder
from resunet_ray.config import RENAMED, load_config
from resunet_ray.errors import ConfigError, ResUNetRayError
from resunet_ray.progress import LogHandler, is_verbose, set_verbose

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

_VERBOSE = "--verbose"
_DEATH = re.compile(r"\(raylet\).*\b(died|killed|memory)\b")  # of one of Ray's processes
_NATIVE_LEVEL = "RAY_BACKEND_LOG_LEVEL"  # Ray's own: which lines its part in C++ writes
_NATIVE_LINE = r"^\[[-0-9 :,]* [DIWE] [0-9 ]*\] [a-z_]*\.cc:"
_BAD_USAGE = 2  # tyro's and argparse's own exit code
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # in the text of Ray's exceptions, wherever they are shown
_RAY_ADVICE = (
    "\nFailed to apply UDF transform"  # what Ray Data adds to the text of an exception of ours
)


def read_config(
    kind: type[Config],
    *,
    description: str,
    recipes: dict[str, Callable[..., Config]] | None = None,
    required: Sequence[str] = (),
    saved: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """The configuration on the command line, over a recipe's or a saved file's. `--verbose` is none of it: see `run_job`.

    Args:
        kind: the configuration's class.
        description: what `--help` says first.
        recipes: other starting points for the defaults, by the value of `--recipe`.
        required: fields without a default.
        saved: the file in which an earlier run left its configuration, for the help; None: there is none.
        arguments: the command line; the process's own by default.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument(_VERBOSE, action="store_true")
    if saved:
        first.add_argument("--config")
    if recipes:
        first.add_argument("--recipe", choices=sorted(recipes), default="default")
    known, rest = first.parse_known_args(
        _with_new_words(sys.argv[1:] if arguments is None else arguments)
    )
    file = known.config if saved else None
    if file is not None and recipes and known.recipe != "default":
        raise ConfigError("--config and --recipe are both starting points: give one of them")
    start = None
    if file is not None:
        start = load_config(
            storage.read_bytes(file).decode(errors="replace"), kind=kind, source=file
        )
    elif recipes:
        start = recipes[known.recipe](**dict.fromkeys(required, tyro.MISSING))
    extra = f"--config FILE starts from what an earlier run saved in {saved}." if saved else ""
    extra += f" --recipe {'|'.join(sorted(recipes))} chooses the defaults." if recipes else ""
    extra += "\n\n--verbose shows all that Ray and its libraries say."
    result: Config = tyro.cli(
        kind, args=rest, default=start, description=f"{description}\n\n{extra}"
    )  # type: ignore[assignment]
    return result


def _with_new_words(arguments: Sequence[str]) -> list[str]:
    """The command line with today's words for those that earlier versions had."""
    words = list(arguments)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        field = name.removeprefix("--").replace("-", "_")
        new = RENAMED.get(field, {}).get(
            value if equals else "".join(words[number + 1 : number + 2])
        )
        if name.startswith("--") and new is not None:
            logger.warning(
                "%s %s is now called %s", name, value if equals else words[number + 1], new
            )
            words[number if equals else number + 1] = f"{name}={new}" if equals else new
    return words


def run_job(name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Runs a job and ends the process: 0 done, 1 failed, 2 bad usage, configuration, input or resources.

    Args:
        name: of the job.
        work: does it, and returns what the last line says; `exit_code` among it is taken out.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogHandler()])
    if _VERBOSE in sys.argv[1:]:
        set_verbose()
    else:
        _hide_native_lines()
    if not sys.stderr.isatty():
        os.environ.setdefault(
            "RAY_COLOR_PREFIX", "0"
        )  # Ray colours what it passes on, even in a file
    try:
        with redirect_stdout(_Printed(sys.stdout)):
            result = work()
        code = int(result.pop("exit_code", 0))
        line = {"job": name, "status": "done" if code == 0 else "failed", **result}
    except SystemExit as leaving:  # help, or a flag that is none
        if not leaving.code:
            raise
        if leaving.code == _BAD_USAGE:
            code, line = (
                2,
                {
                    "job": name,
                    "status": "failed",
                    "error": "ConfigError",
                    "message": "bad usage: see standard error",
                },
            )
        else:  # Ray turns SIGTERM into an exit with its number
            message = f"ended from without (exit code {leaving.code}): the same command goes on"
            code, line = (
                1,
                {"job": name, "status": "failed", "error": "RunError", "message": message},
            )
    except Exception as error:  # noqa: BLE001 (whoever waits for the last line gets one)
        kind, message = _find_own(error) or (None, "")
        if kind is None:
            print(
                _COLOUR.sub("", storage.mask_credentials(traceback.format_exc())), file=sys.stderr
            )
            lines = _COLOUR.sub("", storage.mask_credentials(str(error))).strip().splitlines()
            message = lines[-1] if lines else ""
        code = 1 if kind is None else kind.exit_code
        line = {
            "job": name,
            "status": "failed",
            "error": (kind or type(error)).__name__,
            "message": message,
        }
        print(f"{name}: {message}", file=sys.stderr)
        if code == 1 and (folder := log_folder()) is not None and not is_verbose():
            print(
                f"More is in Ray's log, {folder} on each node; --verbose shows it as it comes",
                file=sys.stderr,
            )
    disconnect()  # what Ray still has to say comes before the last line
    sys.stderr.flush()
    print(json.dumps(line), flush=True)
    sys.exit(code)


def _find_own(error: Exception) -> tuple[type[ResUNetRayError], str] | None:
    """Kind and message of an error of ours, however Ray has wrapped it; None: it is none."""
    if isinstance(error, ResUNetRayError):
        cause = getattr(error, "cause", error)  # from a task it comes with a traceback for its text
        return type(cause), str(cause).partition(_RAY_ADVICE)[0]
    last = str(error).rpartition(f"\n{errors.__name__}.")[
        2
    ]  # from an actor that could not start, it ends a traceback
    kind, _, message = last.partition(": ")
    return (getattr(errors, kind), message.strip()) if hasattr(errors, kind) else None


def _hide_native_lines() -> None:
    """Keeps the lines of Ray's part in C++ from standard error, unless somebody set which ones it writes.

    It calls errors what are remarks, as on every actor of Ray Data, and has no setting but a level, which it announces itself by
    another line. A process of its own takes them out, so that a crash still says what it has to say. Python goes around it.
    """
    grep = shutil.which("grep")
    if grep is None or _NATIVE_LEVEL in os.environ:
        return
    sys.stderr.flush()
    stderr = os.dup(sys.stderr.fileno())
    command = [grep, "--line-buffered", "--invert-match", "--extended-regexp", _NATIVE_LINE]
    # In a session of its own, it outlives an interrupt from the keyboard, and ends with the last process that can write to it.
    rest = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stderr, stderr=stderr, start_new_session=True
    )
    assert rest.stdin is not None, "it is a pipe"
    sys.stderr = os.fdopen(
        stderr, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors
    )
    os.dup2(rest.stdin.fileno(), 2)
    rest.stdin.close()


class _Printed(io.TextIOBase):
    """Standard output while a job works: once Ray is there it belongs to the last line, and what Ray prints goes to the log."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def isatty(self) -> bool:
        return log_folder() is None and self._stdout.isatty()

    def fileno(self) -> int:
        return self._stdout.fileno()

    def write(self, text: str) -> int:
        if log_folder() is None:  # help
            return self._stdout.write(text)
        for line in filter(str.strip, text.splitlines()):
            if is_verbose() or _DEATH.search(line):
                logger.warning("%s", line)
        return len(text)
