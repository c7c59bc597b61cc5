"""The grammar of the command line: how it is taken apart, and the parser of everything.

Theory of operation
    ``VERBS`` names each verb once, with the function that gives a parser its arguments. A run builds the
    parser of its own verb only (:func:`parse`); the whole tree (:func:`tree`) is built for completion
    and the manual page. :func:`parse` lets options stand anywhere: before the verb,
    between positionals, after them; all after ``--`` is positional. Nothing here imports more than
    argparse, because ``towpath pub NAME x`` must start fast.

Invariants
    A wrong command line is one :class:`UsageError`, never an exit from within argparse.
    ``serve`` is not parsed here: what follows it belongs to the daemon's own command line.

Not here: what verbs do (one module each), exit codes (``app``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Final, NoReturn, TypeVar

from towpath.cli import streams, values
from towpath.cli.verbs import VERBS, Verb

V = TypeVar("V")

_TAKE_A_VALUE: Final = ("--socket", "--url")
_BYTES_ARE_FINE: Final = ("data", "key", "socket", "command")


class UsageError(Exception):
    """The command line cannot be understood; ``str()`` says why, ``hint`` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is an exception, and help leaves as all output does."""

    def error(self, message: str) -> NoReturn:
        # The double dash that _options_first put there is nothing to complain of.
        message = message.replace("unrecognized arguments: -- ", "unrecognized arguments: ")
        raise UsageError(message, f"try: {self.prog} --help")

    def print_help(self, file: object = None) -> None:
        streams.emit(self.format_help())


def parse(arguments: Sequence[str]) -> argparse.Namespace | None:
    """Understand a command line.

    Args:
        arguments: what follows the program's name.

    Returns:
        The arguments, with ``verb``, ``socket`` and ``url`` always among them; None when help or the
        version was asked for and has been printed.

    Raises:
        UsageError: it cannot be understood.
    """
    before, rest = _split_at_verb(arguments)
    if not rest:
        return _parse_without_verb(before)
    name = rest[0]
    if name == "serve":
        if before:
            raise UsageError(f"{before[0]} is not for serve", "try: towpath serve --help")
        return argparse.Namespace(verb="serve", daemon_arguments=rest[1:], socket=None, url=None)
    if name not in VERBS:
        raise UsageError(f"there is no verb {name!r}", _suggest_verb(name))
    parser = _verb_parser(VERBS[name])
    try:
        parsed = parser.parse_args(
            _options_first(parser, [*before, *rest[1:]]), argparse.Namespace(verb=name)
        )
    except SystemExit:  # --help, printed
        return None
    _check_text(parsed)
    return parsed


def _check_text(parsed: argparse.Namespace) -> None:
    """Refuse bytes that are no text, where only text can be carried."""
    for name, value in vars(parsed).items():
        if name not in _BYTES_ARE_FINE:
            for text in _texts(value):
                if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                    raise UsageError(f"{text!a} is not UTF-8", "only DATA and --key may be any bytes")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for part in value for text in _texts(part)] if isinstance(value, (list, tuple)) else []


def mapping(option: str, pairs: Sequence[tuple[str, V]]) -> dict[str, V]:
    """Make one mapping of a repeated ``KEY=VALUE`` option.

    Raises:
        UsageError: a key is there twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        raise UsageError(f"{option} has a key twice", "give each key once")
    return result


def tree(*, with_daemon: bool = False) -> Parser:
    """Build the parser of everything: for completion and the manual page.

    Args:
        with_daemon: give ``serve`` the daemon's arguments too, where the daemon is installed.
    """
    parser = _top_parser()
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs", parser_class=Parser)
    for verb in VERBS.values():
        child = verbs.add_parser(verb.name, help=verb.summary, **_parser_settings(verb))
        if verb.name == "serve":
            if with_daemon:
                _add_daemon_arguments(child)
        else:
            _add_common(child)
        verb.build(child)
    return parser


def _top_parser() -> Parser:
    """The parser of what may stand before a verb."""
    parser = _TopParser(
        prog="towpath",
        description="Named channels for the programs of a host.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    _add_common(parser)
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    return parser


def _add_daemon_arguments(parser: Parser) -> None:
    try:
        from towpath_broker.cli import add_arguments
    except ModuleNotFoundError:
        return
    add_arguments(parser)


class _Formatter(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves those alone that have lines of their own (examples)."""

    def __init__(self, prog: str) -> None:
        # argparse makes a formatter for each argument that it is told of; one without a width would import
        # shutil for it, compression libraries and all.
        super().__init__(prog, width=max(streams.columns(streams.STDOUT) - 2, 20))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        from textwrap import fill

        return "\n\n".join(
            paragraph if "\n" in paragraph else fill(paragraph, width) for paragraph in text.split("\n\n")
        )


class _TopParser(Parser):
    """Lists the verbs by group instead of in one row."""

    def format_help(self) -> str:
        lines = [
            "usage: towpath [--socket PATH | --url URL] VERB ...",
            "",
            "Named channels for the programs of this host, by pipe, FIFO and shared memory, ZeroMQ and gRPC.",
        ]
        width = max(map(len, VERBS)) + 3
        for group in dict.fromkeys(verb.group for verb in VERBS.values()):
            lines += ["", f"{group}:"]
            verbs = (verb for verb in VERBS.values() if verb.group == group)
            lines += [f"  {verb.name:{width}}{verb.summary}" for verb in verbs]
        lines += [
            "",
            "Options, before or after the verb:",
            "  -h, --help     show help; after a verb, that verb's",
            "  --version      print the version",
            "  --socket PATH  the daemon's socket. Default: $TOWPATH_SOCKET, or this user's daemon",
            "  --url URL      the daemon, wherever it is: unix:/path, grpc://HOST, zmq://HOST",
            "",
            "To begin:",
            "  towpath serve                                          in one terminal",
            "  towpath declare hello; towpath sub hello               in another",
            "  towpath pub hello world                                in a third",
            "",
        ]
        return "\n".join(lines)


def _parser_settings(verb: Verb) -> dict[str, Any]:
    examples = "".join(f"\n  {example}" for example in verb.examples)
    summary = verb.summary[0].upper() + verb.summary[1:] + "."
    return {
        "description": f"{summary}\n\n{verb.description}" if verb.description else summary,
        "epilog": f"examples:{examples}",
        "formatter_class": _Formatter,
        "allow_abbrev": False,
    }


def _verb_parser(verb: Verb) -> Parser:
    parser = Parser(prog=f"towpath {verb.name}", **_parser_settings(verb))
    _add_common(parser)
    verb.build(parser)
    return parser


def _add_common(parser: Parser) -> None:
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket", metavar="PATH", help="the daemon's socket")
    where.add_argument(
        "--url", metavar="URL", help="the daemon, wherever it is: unix:/path, grpc://HOST, zmq://HOST"
    )


def _split_at_verb(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide into the options before the verb, and the verb with what follows."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        index += 2 if arguments[index] in _TAKE_A_VALUE else 1
    return list(arguments[:index]), list(arguments[index:])


def _parse_without_verb(arguments: list[str]) -> argparse.Namespace | None:
    parser = _top_parser()
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit:  # --help, printed
        return None
    if parsed.version:
        from towpath import __version__

        streams.emit(f"towpath {__version__}\n")
        return None
    raise UsageError("a verb is missing", "towpath --help lists the verbs")


def _suggest_verb(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, VERBS, n=1)
    return f"did you mean: towpath {near[0]}" if near else "towpath --help lists the verbs"


def _options_first(parser: Parser, arguments: list[str]) -> list[str]:
    """Sort options before positionals, which argparse can only then tell apart whatever their order was.

    (``pub NAME --key k DATA`` would otherwise be refused: argparse fills ``DATA`` with nothing when it
    meets ``NAME``.)
    """
    options: list[str] = []
    positionals: list[str] = []
    takes_value = {
        option
        for action in parser._actions
        if action.nargs is None and action.const is None
        for option in action.option_strings
    }
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            positionals += (values.DOUBLE_DASH if text == "--" else text for text in rest)
        elif argument.startswith("-") and argument != "-" and not _is_number(argument):
            options.append(argument)
            if argument in takes_value:
                options += [value for value in [next(rest, None)] if value is not None]
        else:
            positionals.append(argument)
    return [*options, "--", *positionals] if positionals else options


def _is_number(argument: str) -> bool:
    """Whether it is a negative number, which is data and no option."""
    try:
        float(argument)
    except ValueError:
        return False
    return True
