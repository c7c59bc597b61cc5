"""Verbs for the shell that runs the others.

Not here: the scripts (``towpath.cli.completion``).
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Final

from .verb import Verb

SHELLS: Final = ("bash", "zsh", "tcsh")


def _completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or tcsh")


VERBS: Final = (
    Verb(
        "completion",
        "The shell",
        "print a completion script for your shell",
        _completion,
        "Completes verbs, options and the names of the channels there are.",
        (
            "bash:  source <(towpath completion bash)",
            "zsh:   towpath completion zsh > ~/.zfunc/_towpath",
            "tcsh:  towpath completion tcsh > ~/.towpath.tcsh; source ~/.towpath.tcsh",
        ),
    ),
)
