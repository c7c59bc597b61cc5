"""The grammar of the command line: what is understood, wherever options stand, and what is refused how."""

from __future__ import annotations

import argparse
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.cli import values
from towpath.cli.grammar import UsageError, mapping, parse, tree
from towpath.cli.verbs import FRAMINGS, VERBS
from towpath.framing import Framing


def parsed(line: str) -> argparse.Namespace:
    arguments = parse(shlex.split(line))
    assert arguments is not None
    return arguments


@pytest.mark.parametrize(
    "line",
    [
        "--socket /s pub --key k a.b 1 2",
        "pub --socket /s a.b --key k 1 2",
        "pub a.b 1 --key k 2 --socket=/s",
        "pub a.b --key=k --socket /s 1 2",
        "pub --key k --socket /s -- a.b 1 2",
        "--socket=/s pub a.b 1 --key k -- 2",
    ],
)
def test_options_may_stand_anywhere(line: str) -> None:
    arguments = parsed(line)
    assert (arguments.verb, arguments.socket, arguments.url) == ("pub", "/s", None)
    assert (arguments.channel, arguments.data, arguments.key) == ("a.b", ["1", "2"], "k")


@pytest.mark.parametrize(
    ("line", "data"),
    [
        ("pub a", []),
        ("pub a -5", ["-5"]),
        ("pub a -1.5e3 x", ["-1.5e3", "x"]),
        ("pub a -", ["-"]),
        ("pub a -- --quiet -x", ["--quiet", "-x"]),
        ("pub a -- -- x --", ["--", "x", "--"]),
        ("pub a ''", [""]),
    ],
)
def test_data_is_taken_as_it_is(line: str, data: list[str]) -> None:
    assert parsed(line).data == data


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_any_data_after_the_double_dash(data: list[str]) -> None:
    arguments = parse(["pub", "a", "--", *data])
    assert arguments is not None
    assert arguments.data == data


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("", "a verb is missing", "towpath --help lists the verbs"),
        ("--socket /s", "a verb is missing", "towpath --help lists the verbs"),
        ("pbu", "there is no verb 'pbu'", "did you mean: towpath pub"),
        ("xyzzy", "there is no verb 'xyzzy'", "towpath --help lists the verbs"),
        ("pub", "the following arguments are required: CHANNEL", "try: towpath pub --help"),
        ("--socket /s serve", "--socket is not for serve", "try: towpath serve --help"),
        ("status x", "unrecognized arguments: x", "try: towpath status --help"),
        ("status --jso", "unrecognized arguments: --jso", "try: towpath status --help"),
        ("pub a --key", "argument --key: expected one argument", "try: towpath pub --help"),
        (
            "--url u --socket s status",
            "argument --socket: not allowed with argument --url",
            "try: towpath status --help",
        ),
        ("sub a --count 0", "argument -n/--count: '0' is not a number from 1 up", "try: towpath sub --help"),
        ("sub a --timeout -1", "argument --timeout: '-1' is not a time: write seconds, as in 2.5", None),
        ("sub a --timeout nan", "argument --timeout: 'nan' is not a time: write seconds, as in 2.5", None),
        ("sub a --json --meta", "argument --meta: not allowed with argument --json", None),
        (
            "declare a --ring-bytes 4X",
            "argument --ring-bytes: '4X' is not a size: write bytes, or K, M, G as in 4M",
            None,
        ),
        ("bind a fifo:/x --direction in --option mode", "argument --option: 'mode' is not KEY=VALUE", None),
        ("bind a fifo:/x", "the following arguments are required: --direction", "try: towpath bind --help"),
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(line: str, message: str, hint: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        parse(shlex.split(line))
    assert str(caught.value) == message
    assert hint is None or caught.value.hint == hint


def test_serve_keeps_what_follows_for_the_daemon() -> None:
    assert parsed("serve --config x --help -- y").daemon_arguments == shlex.split("--config x --help -- y")


def test_declare_leaves_open_what_is_not_stated() -> None:
    arguments = parsed("declare a")
    assert (arguments.kind, arguments.durable, arguments.overflow, arguments.ring_bytes) == (
        None,
        None,
        None,
        None,
    )
    assert parsed("declare a --durable").durable is True
    assert parsed("declare a --no-durable").durable is False
    assert parsed("declare a --ring-bytes 4M").ring_bytes == 4 << 20


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_verb_has_help_with_an_example(verb: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    if verb != "serve":  # its help is the daemon's
        assert parse([verb, "--help"]) is None
        text = capfdbinary.readouterr().out.decode()
        assert text.startswith(f"usage: towpath {verb}")
        assert f"\nexamples:\n  {VERBS[verb].examples[0]}\n" in text
    assert VERBS[verb].examples


def test_the_general_help_lists_every_verb(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert parse(["--help"]) is None
    text = capfdbinary.readouterr().out.decode()
    for verb in VERBS.values():
        assert f"\n  {verb.name} " in text
        assert verb.summary in text
        assert f"\n{verb.group}:\n" in text


def test_every_example_of_towpath_itself_is_understood() -> None:
    for verb in VERBS.values():
        for example in verb.examples:
            words = shlex.split(example, comments=False)
            if "towpath" not in words or verb.name == "completion":
                continue
            line = words[words.index("towpath") + 1 :]
            ends = [line.index(mark) for mark in ("|", ";") if mark in line]
            assert parse(line[: min(ends, default=len(line))]) is not None, example


def test_the_whole_tree_has_every_verb() -> None:
    choices = next(
        action.choices for action in tree()._actions if isinstance(action, argparse._SubParsersAction)
    )
    assert list(choices) == list(VERBS)


def test_the_framings_are_those_of_the_library() -> None:
    assert set(FRAMINGS) == {framing.value for framing in Framing}


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("4096", 4096), ("4k", 4096), ("4KiB", 4096), ("4MB", 4 << 20), ("1 GiB", 1 << 30), ("7B", 7)],
)
def test_sizes(text: str, number: int) -> None:
    assert values.size(text) == number


@pytest.mark.parametrize("text", ["", "0", "-1", "4T", "K", "1.5M", "4 4", "\u0661"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        values.size(text)


def test_pairs_are_divided_by_the_first_equals_sign() -> None:
    assert values.pair("a=b=c") == ("a", "b=c")
    assert values.pair("a=") == ("a", "")
    with pytest.raises(argparse.ArgumentTypeError):
        values.pair("=b")


def test_a_key_given_twice_is_refused() -> None:
    assert mapping("--header", [("a", "1"), ("b", "2")]) == {"a": "1", "b": "2"}
    with pytest.raises(UsageError, match="--header has a key twice"):
        mapping("--header", [("a", "1"), ("a", "1")])
