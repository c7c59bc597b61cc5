"""``towpath completion``: a script that teaches a shell the verbs, the options and the channels there are.

Theory of operation: shtab writes the script from the parsers. An argument is completed by what its
placeholder in the help says: ``CHANNEL`` by asking the daemon (``towpath channels --names``, which is
quick, and silent when there is none), ``PATH`` by files.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator
from typing import Final

import shtab

from towpath.cli import grammar
from towpath.cli.streams import emit

_CHANNELS: Final = {
    "bash": "_towpath_complete_channels",
    "zsh": "_towpath_complete_channels",
    "tcsh": "`towpath channels --names`",
}
_BY_PLACEHOLDER: Final = {
    "CHANNEL": _CHANNELS,
    "ID|CHANNEL": _CHANNELS,
    "PATH": shtab.FILE,
    "FILE": shtab.FILE,
}
_PREAMBLE: Final = {
    "bash": """\
_towpath_complete_channels() {
  compgen -W "$(towpath channels --names 2>/dev/null)" -- "$1"
}
""",
    "zsh": """\
_towpath_complete_channels() {
  local -a names
  names=(${(f)"$(towpath channels --names 2>/dev/null)"})
  compadd -a names
}
""",
    "tcsh": "",
}


def run(arguments: Namespace) -> int:
    """Print the script for one shell."""
    emit(script(arguments.shell))
    return 0


def script(shell: str) -> str:
    """Write the completion script for bash, zsh or tcsh."""
    parser = grammar.tree(with_daemon=True)
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in _BY_PLACEHOLDER:
            # shtab's own way to be told: an attribute that argparse does not know.
            setattr(action, "complete", _BY_PLACEHOLDER[action.metavar])  # noqa: B010
    text = shtab.complete(parser, shell=shell, preamble=_PREAMBLE[shell])
    return text if text.endswith("\n") else f"{text}\n"


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)
