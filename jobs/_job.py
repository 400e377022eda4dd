"""What every job does alike: read its configuration, run, print one JSON line, exit with the code that the design gives."""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from resunet_ray import storage
from resunet_ray.cluster import disconnect
from resunet_ray.config import load_config
from resunet_ray.errors import ConfigError, ResUNetRayError

Config = TypeVar("Config")

_BAD_USAGE = 2  # tyro's and argparse's own exit code
_RAY_ADVICE = "\nFailed to apply UDF transform"  # what Ray Data adds to the text of an exception of ours


def read_config(
    kind: type[Config],
    *,
    description: str,
    recipes: dict[str, Callable[..., Config]] | None = None,
    required: Sequence[str] = (),
    saved: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """The configuration on the command line, over a recipe's or a saved file's.

    Args:
        kind: the configuration's class.
        description: what `--help` says first.
        recipes: other starting points for the defaults, by the value of `--recipe`.
        required: fields without a default.
        saved: the file in which an earlier run left its configuration, for the help; None: there is none.
        arguments: the command line; the process's own by default.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    if saved:
        first.add_argument("--config")
    if recipes:
        first.add_argument("--recipe", choices=sorted(recipes), default="default")
    known, rest = first.parse_known_args(arguments)
    file = known.config if saved else None
    if file is not None and recipes and known.recipe != "default":
        raise ConfigError("--config and --recipe are both starting points: give one of them")
    start = None
    if file is not None:
        start = load_config(storage.read_bytes(file).decode(errors="replace"), kind=kind, source=file)
    elif recipes:
        start = recipes[known.recipe](**dict.fromkeys(required, tyro.MISSING))
    extra = f"--config FILE starts from what an earlier run saved in {saved}." if saved else ""
    extra += f" --recipe {'|'.join(sorted(recipes))} chooses the defaults." if recipes else ""
    result: Config = tyro.cli(kind, args=rest, default=start, description=f"{description}\n\n{extra}")  # type: ignore[assignment]
    return result


def run_job(name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Runs a job and ends the process: 0 done, 1 failed, 2 bad usage, configuration, input or resources.

    Args:
        name: of the job.
        work: does it, and returns what the last line says; `exit_code` among it is taken out.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    try:
        result = work()
        code = int(result.pop("exit_code", 0))
        line = {"job": name, "status": "done" if code == 0 else "failed", **result}
    except SystemExit as leaving:  # help, or a flag that is none
        if not leaving.code:
            raise
        if leaving.code == _BAD_USAGE:
            code, line = 2, {"job": name, "status": "failed", "error": "ConfigError", "message": "bad usage: see standard error"}
        else:  # Ray turns SIGTERM into an exit with its number
            message = f"ended from without (exit code {leaving.code}): the same command goes on"
            code, line = 1, {"job": name, "status": "failed", "error": "RunError", "message": message}
    except ResUNetRayError as error:
        # From one of Ray's processes it comes wrapped, with a traceback for its text.
        cause = getattr(error, "cause", error)
        code = error.exit_code
        message = str(cause).partition(_RAY_ADVICE)[0]
        line = {"job": name, "status": "failed", "error": type(cause).__name__, "message": message}
        print(f"{name}: {message}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001 (whoever waits for the last line gets one, and the traceback with it)
        code = 1
        lines = storage.mask_credentials(str(error)).strip().splitlines()
        line = {"job": name, "status": "failed", "error": type(error).__name__, "message": lines[-1] if lines else ""}
        traceback.print_exc()
    disconnect()  # what Ray still has to say comes before the last line
    sys.stderr.flush()
    print(json.dumps(line), flush=True)
    sys.exit(code)
