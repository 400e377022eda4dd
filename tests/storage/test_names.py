"""Every name from outside becomes exactly one file in the intended folder."""

import unicodedata
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from resunet_ray.storage import csv_cell, file_name

NASTY = strategies.sampled_from(
    [
        "",
        ".",
        "..",
        "../x",
        "/etc/x",
        "a/../../b",
        "con",
        "NUL.png",
        "x" * 400,
        "ü" * 200,
        "a\0b",
        "a\nb",
        "\ud800",
        "a\u202eb",
        "=1",
    ]
)
ANY = strategies.text(max_size=400) | NASTY


@hypothesis.given(ANY, ANY)
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_name_becomes_one_file(
    tmp_path_factory: pytest.TempPathFactory, one: str, other: str
) -> None:
    folder = tmp_path_factory.mktemp("names")
    path = folder / f"{file_name(one)}.png"
    path.write_bytes(b"")
    assert [found.name for found in folder.iterdir()] == [path.name]
    assert not path.name.startswith(".")
    assert not any(unicodedata.category(letter).startswith("C") for letter in path.name)
    if one != other:
        assert file_name(one) != file_name(other)


@pytest.mark.parametrize("name", ["a", "Zelle 7 (b)", "größer-als_1.tif", "x" * 120, "日本"])
def test_a_safe_name_is_unchanged(name: str, tmp_path: Path) -> None:
    assert file_name(name) == name


def test_a_formula_is_quoted() -> None:
    assert csv_cell('=HYPERLINK("http://x")') == '\'=HYPERLINK("http://x")'
    assert csv_cell("plain = text") == "plain = text"
