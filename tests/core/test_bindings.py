"""URLs and options of bindings: what is taken, what is refused and how that is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.bindings import (
    OPTION_TYPES,
    REGISTERED,
    FifoOptions,
    MqOptions,
    PipeOptions,
    Restart,
    SysvOptions,
    WhenAbsent,
    check_options,
    format_bytes,
    parse_bytes,
    parse_command,
    parse_framing,
    parse_options,
    parse_url,
    place_key,
)
from towpath.errors import InvalidArgument
from towpath.framing import Framing, FramingOptions


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("fifo:/run/x", ("fifo", "/run/x")),
        ("fifo:/run/with space:and colon", ("fifo", "/run/with space:and colon")),
        ("pipe:vmstat 1", ("pipe", "vmstat 1")),
        ("pipe:sh -c 'tail -f a | grep b'", ("pipe", "sh -c 'tail -f a | grep b'")),
        ("fifo:/" + "a" * 255, ("fifo", "/" + "a" * 255)),
        ("mq:/orders", ("mq", "/orders")),
        ("mq:/" + "a" * 255, ("mq", "/" + "a" * 255)),
        ("sysv:0x1234", ("sysv", "0x1234")),
        ("sysv:4294967295", ("sysv", "4294967295")),
        ("sysv:/etc/app.conf:65", ("sysv", "/etc/app.conf:65")),
        ("sysv:/etc/app.conf:A", ("sysv", "/etc/app.conf:A")),
    ],
)
def test_url_is_taken_apart(url: str, expected: tuple[str, str]) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "begins with no known scheme"),
        ("/run/x", "begins with no known scheme"),
        ("http://x", "known are fifo:, pipe:"),
        ("FIFO:/x", "begins with no known scheme"),
        ("fifo:", "not absolute"),
        ("fifo:run/x", "not absolute"),
        ("fifo:/", "names a directory"),
        ("fifo:/run/", "names a directory"),
        ("fifo:/run/.", "names a directory"),
        ("fifo:/run/../x", "'..' is not allowed"),
        ("fifo:/run/a\0b", "NUL"),
        ("fifo:/" + "a" * 256, "more than 255 bytes"),
        ("fifo:/" + "abcdefg/" * 512, "more than 4095 bytes"),
        ("fifo:/\udc80", "UTF-8"),
        ("pipe:", "names no command"),
        ("pipe:   ", "names no command"),
        ("pipe:''", "names no command"),
        ("pipe:echo 'a", "cannot be split"),
        ("pipe:a\0b", "NUL"),
        ("pipe:" + "a" * 65_537, "more than 65536 bytes"),
        ("pipe:\udc80", "UTF-8"),
        ("mq:orders", "one slash"),
        ("mq:/", "one slash"),
        ("mq:/a/b", "one slash"),
        ("mq:/..", "no message queue can have this name"),
        ("mq:/a\0", "no message queue can have this name"),
        ("mq:/" + "a" * 256, "more than 255 bytes"),
        ("mq:/\udc80", "UTF-8"),
        ("sysv:", "no key"),
        ("sysv:0", "no key"),
        ("sysv:-1", "no key"),
        ("sysv:4294967296", "no key"),
        ("sysv:/etc/app.conf", "no key"),
        ("sysv:/etc/app.conf:0", "no key"),
        ("sysv:/etc/app.conf:256", "no key"),
        ("sysv:/etc/../x:1", "'..' is not allowed"),
        ("sysv:٣", "no key"),
    ],
)
def test_bad_url_is_refused(url: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_url(url)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("fifo:/run/x", "fifo:/run/x", True),
        ("fifo:/run/x", "fifo://run/./x", True),
        ("fifo:/run/x", "fifo:/run/y", False),
        ("pipe:echo 'a' b", 'pipe:echo a  "b"', True),
        ("pipe:echo 'a b'", "pipe:echo a b", False),
        ("fifo:/echo", "pipe:/echo", False),
        ("mq:/a", "mq:/b", False),
        ("sysv:0x10", "sysv:16", True),
        ("sysv:/etc//app:A", "sysv:/etc/app:65", True),
        ("sysv:/etc/app:66", "sysv:/etc/app:65", False),
    ],
)
def test_place(one: str, other: str, is_same: bool) -> None:
    assert (place_key(one) == place_key(other)) is is_same


def test_command_is_split_as_a_shell_splits_words() -> None:
    assert parse_command("sh -c 'a | b' \"c d\" e\\ f") == ["sh", "-c", "a | b", "c d", "e f"]


def test_defaults() -> None:
    assert parse_options("fifo", {}) == FifoOptions(FramingOptions(), 0o600, True, WhenAbsent.DROP)
    assert parse_options("pipe", {}) == PipeOptions(FramingOptions(), Restart.ALWAYS, 1000, 5000)


def test_every_option_reaches_its_adapter() -> None:
    assert parse_options(
        "fifo",
        {
            "framing": "delimiter",
            "delimiter": "\\r\\n",
            "frame_bytes_max": "1024",
            "mode": "0660",
            "create": "false",
            "when_absent": "block",
        },
    ) == FifoOptions(
        FramingOptions(Framing.DELIMITER, b"\r\n", 0, 1024), 0o660, create=False, when_absent=WhenAbsent.BLOCK
    )
    assert parse_options(
        "pipe",
        {
            "framing": "fixed",
            "frame_bytes": "100000",
            "restart": "on-failure",
            "restart_delay_ms": "10",
            "stop_timeout_ms": "0",
        },
    ) == PipeOptions(FramingOptions(Framing.FIXED, b"", 100_000, 100_000), Restart.ON_FAILURE, 10, 0)


def test_every_option_of_message_queues_reaches_its_adapter() -> None:
    assert parse_options("mq", {}) == MqOptions(0o600, True, None, None, False, 1 << 20)
    assert parse_options(
        "mq",
        {
            "mode": "0660",
            "create": "false",
            "maxmsg": "7",
            "msgsize": "100",
            "split": "true",
            "split_bytes_max": "9000",
        },
    ) == MqOptions(0o660, create=False, maxmsg=7, msgsize=100, split=True, split_bytes_max=9000)
    assert parse_options("sysv", {}) == SysvOptions(0o600, True, 1, 0)
    assert parse_options(
        "sysv", {"mode": "0660", "create": "false", "type": "3", "receive_type": "4"}
    ) == SysvOptions(0o660, create=False, type=3, receive_type=4)


def test_one_name_has_one_type() -> None:
    for scheme in REGISTERED.values():
        for option in scheme.options:
            assert OPTION_TYPES[option.name] == option.type


def test_framing_ignores_what_is_not_framing() -> None:
    assert parse_framing({"framing": "raw", "mode": "0600"}) == FramingOptions(Framing.RAW)


@pytest.mark.parametrize(
    ("scheme", "direction", "options", "text"),
    [
        ("fifo", "sideways", {}, "allowed are in, out, both"),
        ("fifo", "both", {}, "carries one way"),
        ("mq", "both", {}, "carries one way"),
        ("mq", "in", {"maxmsg": "0"}, "1 to 65536"),
        ("mq", "in", {"msgsize": "16777217"}, "1 to 16777216"),
        ("mq", "in", {"split_bytes_max": "9"}, "needs split=true"),
        ("mq", "in", {"framing": "line"}, "'framing' is no option of a mq: binding"),
        ("sysv", "both", {}, "needs receive_type"),
        ("sysv", "both", {"type": "2", "receive_type": "2"}, "needs receive_type"),
        ("sysv", "in", {"receive_type": "-1"}, "0 to 2147483647"),
        ("fifo", "in", {"colour": "red"}, "'colour' is no option"),
        ("fifo", "in", {"restart": "never"}, "'restart' is no option of a fifo: binding"),
        ("pipe", "in", {"mode": "0600"}, "'mode' is no option of a pipe: binding"),
        ("fifo", "in", {"mode": "rw"}, "option mode cannot be 'rw': it is an octal number, 0000 to 0777"),
        ("fifo", "in", {"mode": "1777"}, "0000 to 0777"),
        ("fifo", "in", {"mode": ""}, "option mode cannot be ''"),
        ("fifo", "in", {"create": "maybe"}, "true or false"),
        ("fifo", "in", {"when_absent": "wait"}, "drop, block"),
        ("pipe", "in", {"framing": "lines"}, "line, length, netstring, delimiter, fixed, raw"),
        ("pipe", "in", {"frame_bytes_max": "0"}, "a whole number, 1 to 268435456"),
        ("pipe", "in", {"frame_bytes_max": "268435457"}, "a whole number, 1 to 268435456"),
        ("pipe", "in", {"frame_bytes_max": "1e3"}, "a whole number"),
        ("pipe", "in", {"frame_bytes_max": "-1"}, "a whole number"),
        ("pipe", "in", {"frame_bytes_max": "٣"}, "a whole number"),
        ("pipe", "in", {"frame_bytes_max": "9" * 5000}, "a whole number"),
        ("pipe", "in", {"restart_delay_ms": "9"}, "10 to 30000"),
        ("pipe", "in", {"delimiter": ";"}, "option delimiter needs framing=delimiter, and framing is line"),
        ("pipe", "in", {"framing": "delimiter"}, "framing=delimiter needs option delimiter"),
        ("pipe", "in", {"framing": "delimiter", "delimiter": ""}, "1 to 16 bytes"),
        ("pipe", "in", {"framing": "delimiter", "delimiter": "a" * 17}, "1 to 16 bytes"),
        ("pipe", "in", {"framing": "delimiter", "delimiter": "\\q"}, "stands for no byte"),
        ("pipe", "in", {"framing": "delimiter", "delimiter": "\\"}, "stands for no byte"),
        ("pipe", "in", {"framing": "delimiter", "delimiter": "\\xg0"}, "stands for no byte"),
        ("pipe", "in", {"framing": "fixed"}, "framing=fixed needs option frame_bytes"),
        ("pipe", "in", {"frame_bytes": "8"}, "option frame_bytes needs framing=fixed"),
        (
            "pipe",
            "in",
            {"framing": "fixed", "frame_bytes": "8", "frame_bytes_max": "8"},
            "not frame_bytes_max",
        ),
    ],
)
def test_bad_options_are_refused(scheme: str, direction: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_options(scheme, direction, options)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 500


def test_options_are_brought_into_one_spelling() -> None:
    stated = {"mode": "600", "frame_bytes_max": "0100", "framing": "delimiter", "delimiter": "\\x3b\\x0a\n"}
    checked = check_options("fifo", "in", stated)
    assert checked == {
        "delimiter": ";\\n\\n",
        "frame_bytes_max": "100",
        "framing": "delimiter",
        "mode": "0600",
    }
    assert list(checked) == sorted(checked)


@st.composite
def stated_options(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    """Options that some binding can have."""
    scheme = draw(st.sampled_from(["fifo", "pipe"]))
    options: dict[str, str] = {}
    for option in REGISTERED[scheme].options:
        if option.name in ("delimiter", "frame_bytes") or not draw(st.booleans()):
            continue
        if option.type in ("choice", "boolean"):
            options[option.name] = draw(st.sampled_from(option.choices or ("true", "false")))
        else:
            value = draw(st.integers(option.minimum, option.maximum))
            options[option.name] = f"{value:o}" if option.type == "octal" else str(value)
    if options.get("framing") == "delimiter":
        options["delimiter"] = format_bytes(draw(st.binary(min_size=1, max_size=16)))
    if options.get("framing") == "fixed":
        options["frame_bytes"] = str(draw(st.integers(1, 1 << 28)))
        options.pop("frame_bytes_max", None)
    return scheme, options


@given(stated_options())
def test_what_was_checked_is_settled(drawn: tuple[str, dict[str, str]]) -> None:
    scheme, options = drawn
    checked = check_options(scheme, "out", options)
    assert check_options(scheme, "out", checked) == checked
    assert parse_options(scheme, checked) == parse_options(scheme, options)
    assert checked.keys() == options.keys()


@given(st.binary(max_size=64))
def test_bytes_as_people_write_them(data: bytes) -> None:
    text = format_bytes(data)
    assert text.isascii() and (text.isprintable() or not text)
    assert parse_bytes(text) == data


@given(st.text(max_size=40))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    for url in (text, f"fifo:/{text}", f"pipe:{text}"):
        try:
            scheme, place = parse_url(url)
        except InvalidArgument:
            continue
        assert url == f"{scheme}:{place}"
        assert place_key(url)[0] == scheme
