"""The flags of a configuration, read off its fields: for `--help` and for docs/jobs.md."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from resunet_ray.config.roles import TUNING, Heading

_ORDER = list(Heading)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag."""

    names: tuple[str, ...]
    """`--crop`; `--flips` and `--no-flips`; without dashes, an argument known by its position."""
    values: str
    """What follows it: `INT`, `{auto,on,off}`, `STR ...` for one or more; empty for a switch."""
    default: Any
    """tyro.MISSING if the flag is required."""
    about: str
    """The text below its field."""
    heading: Heading
    tuning: bool
    """Only `--help-all` shows it."""

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is tyro.MISSING


def list_flags(kind: type[Any], *, start: Any = None) -> list[Flag]:
    """List a configuration's flags by heading: required ones first, tuning ones last.

    Args:
        kind: the configuration's class.
        start: a configuration whose values are the defaults; None: those of the class.
    """
    flags = _walk(kind, start=start, prefix="", heading=_ORDER[0], tuning=False)
    return sorted(
        flags, key=lambda flag: (_ORDER.index(flag.heading), flag.tuning, not flag.required)
    )


def _walk(
    kind: type[Any], *, start: Any, prefix: str, heading: Heading, tuning: bool
) -> Iterator[Flag]:
    texts, hints = _read_texts(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, *roles = (
            get_args(hints[field.name])
            if get_origin(hints[field.name]) is Annotated
            else (hints[field.name],)
        )
        heading = next((role for role in roles if isinstance(role, Heading)), heading)
        default = _find_default(field) if start is None else getattr(start, field.name)
        is_tuning = tuning or TUNING in roles
        if dataclasses.is_dataclass(hint):
            merged = any(getattr(role, "name", None) == "" for role in roles)  # tyro.conf.arg
            yield from _walk(
                hint,  # type: ignore[arg-type]
                start=None if default is tyro.MISSING else default,
                prefix=prefix if merged else f"{prefix}{field.name}.",
                heading=heading,
                tuning=is_tuning,
            )
        else:
            names = _name_flag(field.name, hint, roles, prefix=prefix)
            values = _describe_values(hint, repeated=tyro.conf.UseAppendAction in roles)
            yield Flag(names, values, default, texts[field.name], heading, is_tuning)


def _find_default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING if field.default is dataclasses.MISSING else field.default


def _name_flag(name: str, hint: Any, roles: list[Any], *, prefix: str) -> tuple[str, ...]:
    """Name a flag as tyro does."""
    name = name.replace("_", "-")
    if tyro.conf.Positional in roles:
        return (name,)
    aliases = [alias for role in roles for alias in getattr(role, "aliases", None) or ()]
    return (f"--{prefix}{name}", *([f"--{prefix}no-{name}"] if hint is bool else []), *aliases)


def _describe_values(hint: Any, *, repeated: bool = False) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is bool:
        return ""
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if origin is tuple:
        return _describe_values(inner[0]) + ("" if repeated else " ...")
    if origin in (Union, UnionType):
        return "|".join(_describe_values(one) for one in inner if one is not type(None))
    return str(hint.__name__).upper()


def _read_texts(kind: type[Any]) -> dict[str, str]:
    """Read the text below each field of a configuration, on one line."""
    texts: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if dataclasses.is_dataclass(part):
            texts |= _read_own_texts(part)
    return texts


def _read_own_texts(kind: type[Any]) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef), "a configuration is a class"
    texts = {}
    for item, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = str(after.value.value)
            texts[item.target.id] = " ".join(text.split())
    return texts
