"""The command line: ``towpath VERB ...``, and ``towpathd``, which is ``towpath serve``.

Files in reading order: ``app`` (one run, its errors and exit codes), ``grammar`` (verbs and arguments),
``registry``, ``pub``, ``sub``, ``tap``, ``replay``, ``top``, ``completion`` (what the verbs do),
``report``, ``preview``, ``rates`` and ``text`` (what is printed), ``streams``, ``appending`` and
``progress``.

Here are only the entry points, because they decide what Ctrl-C does while the rest is still being
imported: end the process, as it does with any program.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: what follows the program's name; None for the process's own.

    Returns:
        The exit code: 0, or that of the error's row in ``towpath.errors.TABLE``.
    """
    # Where it is ignored (`nohup`, a script's background job) it stays so.
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from towpath.cli.app import run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(sys.argv[1:] if arguments is None else arguments)


def main_towpathd() -> int:
    """Run ``towpath serve`` with the process's arguments."""
    return main(["serve", *sys.argv[1:]])
