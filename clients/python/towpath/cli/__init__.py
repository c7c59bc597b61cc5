"""The command line: ``towpath VERB ...``, and ``towpathd``, which is ``towpath serve``.

Files in reading order: ``quick`` (a plain ``pub``, before the rest is imported), ``app`` (one run, its errors
and exit codes), ``grammar`` (verbs and arguments), ``registry``, ``pub``, ``sub``, ``tap``, ``replay``,
``top``, ``completion`` (what the verbs do), ``report``, ``preview``, ``rates`` and ``text`` (what is
printed), ``streams``, ``appending`` and ``progress``.

Here are only the entry points, because they decide what Ctrl-C does while the rest is still being
imported: end the process, as it does with any program.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, without the import of `enum`
import sys

from towpath.cli import quick

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: what follows the program's name; None for the process's own.

    Returns:
        The exit code: 0, or that of the error's row in ``towpath.errors.TABLE``.
    """
    # Where it is ignored (`nohup`, a script's background job) it stays so.
    interruptible = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
    if interruptible:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    words = sys.argv[1:] if arguments is None else arguments
    failure = None
    try:
        if (exit_code := quick.run(words)) is not None:
            return exit_code
    except Exception as error:  # told of below, as the whole command line tells of it
        failure = error
    from towpath.cli.app import run, tell_failure

    if interruptible:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    return run(words) if failure is None else tell_failure(failure)


def main_towpathd() -> int:
    """Run ``towpath serve`` with the process's arguments."""
    return main(["serve", *sys.argv[1:]])
