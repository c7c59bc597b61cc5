"""Write the manual page deploy/man/towpath.1 from the command line's own parsers and the error table.

Run it after a change to either (`make man`); tests/cli/test_manual.py fails when the page is stale.
Theory of operation: the parsers are walked, not their help formatted, so that the page is the same whichever
Python writes it. Output is man(7) markup, one page for all verbs; towpathd.1 refers to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from towpath.bindings import DESCRIBED_OPTIONS, SCHEMES, Option
from towpath.cli.grammar import tree
from towpath.cli.verbs import VERBS, Verb
from towpath.errors import TABLE
from towpath.model import BindingInfo, BindingReport, ChannelInfo, GatewayInfo, Status

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "man"

OPENING = r""".\" Written by tools/generate_manual.py; do not edit.
.TH TOWPATH 1 "" "Towpath" "Towpath Manual"
.SH NAME
towpath, towpathd \- named channels for the programs of a host
.SH SYNOPSIS
.B towpath
.RB [ \-\-socket
.IR PATH " | "
.BI \-\-url " URL" \fR]
.I VERB
\&...
.br
.B towpathd
\&...
.SH DESCRIPTION
A channel is a named stream of messages.
Programs join it by a FIFO or a pipe, by shared memory from Python, by ZeroMQ and by gRPC,
and all hear each other.
.B towpath
is for people and scripts;
.B towpathd
is the same as
.BR "towpath serve" .
.PP
Options may stand before or after the verb.
What follows
.B \-\-
is never an option.
"""

_ESCAPES = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
    '"': "\\(dq",
}

CLOSING = r""".SH JSON
.B \-\-json
prints one JSON document;
.B sub \-\-json
prints one object on each line.
Keys may be added in later versions; none is taken away or changes its meaning.
.TP
.B channels
A list of channels: @ChannelInfo@.
.B declare
prints one of these.
.TP
.B bind, unbind
A binding: @BindingInfo@.
Its report: @BindingReport@.
.TP
.B status
@Status@.
A gateway: @GatewayInfo@.
.TP
.B sub
channel, seq, source, time_ns, payload, encoding (utf-8, or base64 where the payload is not UTF-8), headers.
.PP
Moments (at_ns, time_ns) are nanoseconds since 1970-01-01 UTC; sizes are bytes.
.SH ENVIRONMENT
.TP
.B TOWPATH_SOCKET
The daemon's socket, where neither
.B \-\-socket
nor
.B \-\-url
is given.
Otherwise it is looked for in
.IR $XDG_RUNTIME_DIR/towpath ,
.I /run/towpath
and
.IR /tmp/towpath-UID .
.TP
.B NO_COLOR
When set, there are no colours.
.TP
.B TOWPATH_TRACEBACK
When set, an error is preceded by a Python traceback.
.SH EXIT STATUS
"""


def manual() -> str:
    """Write the page of ``towpath``."""
    parts = [OPENING]
    children = next(
        action.choices
        for action in tree(with_daemon=True)._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    group = ""
    for verb in VERBS.values():
        if verb.group != group:
            group = verb.group
            parts.append(f".SH {_escaped(group.upper())}\n")
        parts += _verb(verb, children[verb.name])
    parts.append(_with_keys(CLOSING))
    parts += _exit_statuses()
    return "".join(parts)


def pages() -> dict[Path, str]:
    """Every page there is: its path, and what it should hold."""
    return {FOLDER / "towpath.1": manual(), FOLDER / "towpathd.1": ".so man1/towpath.1\n"}


def _verb(verb: Verb, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f".SS {_escaped(verb.name)}\n"
    positionals = [action for action in parser._actions if not action.option_strings]
    synopsis = " ".join(f"\\fI{_escaped(_placeholder(action))}\\fR" for action in positionals)
    yield f"\\fBtowpath {_escaped(verb.name)}\\fR [\\fIOPTIONS\\fR] {synopsis}\n".replace(" \n", "\n")
    yield f".PP\n{_sentence(verb.summary)}\n"
    if verb.description:
        yield f"{_escaped(verb.description)}\n"
    for action in parser._actions:
        if action.dest in ("help", "socket", "url") or not action.help:
            continue
        yield f".TP\n{_term(action)}\n{_sentence(action.help)}\n"
    if verb.name == "bind":
        yield ".PP\nOptions of a binding, each for\n.BR \\-\\-option :\n"
        yield from (_binding_option(option, schemes) for option, schemes in DESCRIBED_OPTIONS)
    yield ".PP\n.EX\n"
    yield from (f"{_escaped(example)}\n" for example in verb.examples)
    yield ".EE\n"


def _binding_option(option: Option, schemes: tuple[str, ...]) -> str:
    only = "" if schemes == SCHEMES else f"For {', '.join(schemes)}. "
    default = "" if option.default is None else f" Default: {option.default}."
    text = f"{only}{option.doc} It is {option.allowed}.{default}"
    return f".TP\n.B {_escaped(option.name)}\n{_escaped(text)}\n"


def _term(action: argparse.Action) -> str:
    placeholder = f"\\fI{_escaped(_placeholder(action))}\\fR" if action.nargs != 0 else ""
    if not action.option_strings:
        return placeholder
    options = ", ".join(f"\\fB{_escaped(option)}\\fR" for option in action.option_strings)
    return f"{options} {placeholder}".rstrip()


def _placeholder(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else ""
    if not name:
        name = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    return {"*": f"[{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def _exit_statuses() -> Iterator[str]:
    meanings: dict[int, list[str]] = {0: ["done"]}
    for code, row in TABLE.items():
        meanings.setdefault(row.exit_code, []).append(code.name.lower().replace("_", " "))
    meanings.setdefault(74, []).append("standard input or output failed")
    meanings[130] = ["ended by SIGINT (Ctrl-C)"]
    meanings[141] = ["ended by SIGPIPE: nobody reads the output any more"]
    for status, names in sorted(meanings.items()):
        yield f".TP\n.B {status}\n{_escaped(', '.join(names))}\n"


def _sentence(text: str) -> str:
    return _escaped(f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}")


def _with_keys(text: str) -> str:
    """Put the fields of the values that are printed as JSON where ``@ClassName@`` stands."""
    for value in (ChannelInfo, BindingInfo, BindingReport, GatewayInfo, Status):
        text = text.replace(f"@{value.__name__}@", ", ".join(field.name for field in fields(value)))
    return text


def _escaped(text: str) -> str:
    """Quote what man(7) or a typesetter would take for something else (groff_char(7))."""
    text = "".join(_ESCAPES.get(character, character) for character in text)
    return f"\\&{text}" if text.startswith(".") else text


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
