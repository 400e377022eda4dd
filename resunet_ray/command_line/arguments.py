"""A job's configuration, read from its command line over a recipe or a saved file; and its help."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import tyro

from resunet_ray import storage
from resunet_ray.config import RENAMED, load_config
from resunet_ray.config.flags import Flag, list_flags
from resunet_ray.errors import ConfigError

logger = logging.getLogger(__name__)

Config = TypeVar("Config")

VERBOSE = "--verbose"

_FLAG_COLUMNS = 32  # of the help: wide enough for most flags and what follows them


def read_config(
    kind: type[Config],
    *,
    description: str,
    recipes: dict[str, Callable[..., Config]] | None = None,
    required: Sequence[str] = (),
    saved: str | None = None,
    arguments: Sequence[str] | None = None,
) -> Config:
    """Read the configuration on the command line, or print help and exit.

    `--verbose` is not part of the configuration: see `run_job`.

    Args:
        kind: the configuration's class.
        description: what `--help` says first.
        recipes: other starting points for the defaults, by the value of `--recipe`.
        required: fields without a default.
        saved: the file in which an earlier run saved its configuration, named in the help; None:
            there is none, and no `--config`.
        arguments: the last words of the command line; None: all after the job's name.

    Raises:
        ConfigError: both `--config` and `--recipe` are given, or a setting is wrong.
        SystemExit: help was asked for (0), or a flag is unknown or missing (2).
    """
    words = sys.argv[1:] if arguments is None else arguments
    add_general_flags = partial(_add_general_flags, recipes=recipes or {}, saved=saved)
    general = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_general_flags(general)
    known, rest = general.parse_known_args(_rename_old_arguments(words))
    file = known.config if saved else None
    if file is not None and recipes and known.recipe != "default":
        raise ConfigError("--config and --recipe are both starting points: give only one of them")
    start = None
    if file is not None:
        text = storage.read_bytes(file).decode(errors="replace")
        start = load_config(text, kind=kind, source=file)
    elif recipes:
        start = recipes[known.recipe](**dict.fromkeys(required, tyro.MISSING))
    if known.help or known.help_all:
        job = " ".join(sys.argv[: len(sys.argv) - len(words)])
        flags = list_flags(kind, start=start)
        page = _build_help(flags, job=job, description=description, everything=known.help_all)
        add_general_flags(page)
        page.print_help()
        raise SystemExit(0)
    result: Config = tyro.cli(kind, args=rest, default=start)  # type: ignore[assignment]
    return result


def _add_general_flags(
    parser: argparse.ArgumentParser, *, recipes: dict[str, Any], saved: str | None
) -> None:
    """Add the flags that are not part of a configuration."""
    group = parser.add_argument_group("General")
    if saved:
        about = f"Start from the settings that an earlier run saved in {saved}."
        group.add_argument("--config", metavar="FILE", help=about)
    if recipes:
        names = sorted(recipes)
        group.add_argument("--recipe", choices=names, default="default", help="Defaults to use.")
    group.add_argument(VERBOSE, action="store_true", help="Show everything that Ray logs.")
    group.add_argument("-h", "--help", action="store_true", help="Show the everyday flags.")
    group.add_argument("--help-all", action="store_true", help="Show every flag.")


def _build_help(
    flags: Sequence[Flag], *, job: str, description: str, everything: bool
) -> argparse.ArgumentParser:
    """Build a parser that only prints help: tyro has no titled groups without prefixes in names."""
    required = [
        f"{flag.names[0]} {flag.values}" if flag.names[0].startswith("-") else flag.values
        for flag in flags
        if flag.required
    ]
    hidden = 0 if everything else sum(flag.tuning for flag in flags)
    parser = argparse.ArgumentParser(
        usage=" ".join([job, *required, "[flags]"]).replace("%", "%%"),
        description=description,
        epilog=f"--help-all shows {hidden} more flags." if hidden else None,
        formatter_class=partial(
            argparse.RawDescriptionHelpFormatter, max_help_position=_FLAG_COLUMNS
        ),
        add_help=False,
    )
    groups: dict[str, Any] = {}
    for flag in flags:
        if flag.tuning and not everything:
            continue
        title = flag.heading.value
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        about = flag.about
        if flag.default not in (None, ()):
            about += " (required)" if flag.required else f" (default: {_show(flag.default)})"
        action = {"metavar": flag.values} if flag.values else {"action": "store_true"}
        groups[title].add_argument(*flag.names, help=about.replace("%", "%%"), **action)
    return parser


def _show(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _rename_old_arguments(arguments: Sequence[str]) -> list[str]:
    """Replace the words of earlier versions on a command line with today's."""
    words = list(arguments)
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        field = name.removeprefix("--").replace("-", "_")
        old = value if equals else "".join(words[number + 1 : number + 2])
        new = RENAMED.get(field, {}).get(old)
        if name.startswith("--") and new is not None:
            logger.warning("%s %s is now called %s", name, old, new)
            words[number if equals else number + 1] = f"{name}={new}" if equals else new
    return words
