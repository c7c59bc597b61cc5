"""One dataclass, many faces: keys, flags, environment. What settings.py does not use itself is tried here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from towpath.errors import InvalidConfiguration
from towpath_broker.tables import (
    add_flags,
    environment_table,
    flags_table,
    format_toml,
    parse_table,
    setting,
    settings_of,
    to_table,
)


@dataclass(frozen=True, slots=True)
class Everything:
    on: bool = setting(False, "a switch")
    number: int = setting(5, "a number", minimum=-1, maximum=10)
    name: str = setting("x", "a name", minimum=1, maximum=3)
    names: tuple[str, ...] = setting(("a",), "names", maximum=2)
    choice: Literal["left", "right"] = setting("left", "a choice")
    open_number: int | None = setting(None, "a number or none")
    open_choice: Literal["up"] | None = setting(None, "a choice or none")
    plain: int = 7


def parsed(**table: Any) -> Everything:
    return parse_table(Everything, table, where="f: [t]")


def test_a_table_and_back() -> None:
    full = parsed(
        on=True, number=-1, name="abc", names=["b", "c"], choice="right", open_number=1, open_choice="up"
    )
    assert full == Everything(True, -1, "abc", ("b", "c"), "right", 1, "up")
    assert parse_table(Everything, to_table(full), where="") == full
    assert parsed() == Everything()
    assert "open_number" not in to_table(Everything())


@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ({"on": 1}, "true or false"),
        ({"number": 11}, "a whole number, -1 to 10"),
        ({"number": 1.0}, "a whole number, -1 to 10"),
        ({"name": ""}, "a string, 1 to 3 characters"),
        ({"name": "a\0b"}, "a string, 1 to 3 characters"),
        ({"names": ["a", "b", "c"]}, "a list of strings, at most 2 items"),
        ({"names": ["a", 1]}, "a list of strings, at most 2 items"),
        ({"choice": "up"}, "one of left, right"),
        ({"open_choice": "left"}, "one of up"),
        ({"open_number": None}, "a whole number"),
        ({"plain": 0}, "a whole number, 1 or more"),
    ],
)
def test_what_is_allowed_is_said(table: dict[str, Any], allowed: str) -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        parsed(**table)
    [key] = table
    assert caught.value.message.startswith(f"f: [t] {key}: ")
    assert caught.value.message.endswith(f"; allowed: {allowed}")


@pytest.mark.parametrize(
    ("text", "value"),
    [("on", True), ("TRUE", True), ("1", True), ("no", False), ("0", False), ("2", None), ("", None)],
)
def test_switches_by_environment(text: str, value: bool | None) -> None:
    environment = {"TOWPATH_T_ON": text, "TOWPATH_OTHER": "x", "TOWPATH_TT_X": "x"}
    if value is None:
        with pytest.raises(InvalidConfiguration, match="TOWPATH_T_ON"):
            environment_table(Everything, "t", environment)
    else:
        assert environment_table(Everything, "t", environment) == {"on": value}


def test_flags_derive_from_the_fields() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Everything)
    arguments = parser.parse_args(["--names", "a, b", "--open-number", "+3", "--choice", "right"])
    assert flags_table(Everything, arguments) == {"names": ("a", "b"), "open_number": 3, "choice": "right"}
    with pytest.raises(InvalidConfiguration, match="command line: number: '1e3' is not allowed"):
        flags_table(Everything, parser.parse_args(["--number", "1e3"]))
    assert all(item.name.replace("_", "-") in parser.format_help() for item in settings_of(Everything))


def test_toml_is_written_as_toml_reads_it() -> None:
    assert format_toml('a"b\\\n\x7f') == '"a\\"b\\\\\\n\\u007F"'
    assert format_toml(("x", "y")) == '["x", "y"]'
    assert format_toml(True) == "true"
