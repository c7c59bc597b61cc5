"""One run of the command line: parse, do, and say what went wrong in one line and a hint.

Theory of operation
    Every outcome becomes an exit code here and nowhere else. Errors of the table exit with the code of
    their row. A host's refusal (a full disk, a directory where a file should be) exits 74 (EX_IOERR).
    Ctrl-C ends the process by SIGINT, and a reader that goes away ends it by SIGPIPE, because only then
    does a shell break its own loop, or stay quiet; both show there as 130 and 141. Anything else is a
    bug. It is told in the same form, exits 70, and ``TOWPATH_TRACEBACK=1`` shows where. Modules are
    imported by the verb that needs them: starting fast is what makes ``towpath pub`` usable in a loop.

Not here: what verbs do.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

from towpath.cli import grammar, streams

if TYPE_CHECKING:
    from argparse import Namespace

EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 69
EXIT_BUG: Final = 70
EXIT_IO: Final = 74
_HINTS: Final[Mapping[int, str]] = {
    errno.EMFILE: "this process is at its limit of open files (ulimit -n)",
    errno.ENFILE: "the host is at its limit of open files (fs.file-max)",
    errno.ENOMEM: "a publisher takes ring_bytes of its channel; ulimit -v says what this process may have",
}
"""What helps when the host refuses."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: what follows the program's name.

    Returns:
        The exit code. Does not return when the process ends by a signal.
    """
    streams.open_missing_streams()
    try:
        parsed = grammar.parse(arguments)
        return 0 if parsed is None else _run_verb(parsed)
    except KeyboardInterrupt as interrupt:
        _die_of(interrupt)
    except streams.OutputClosed:
        streams.die_of(signal.SIGPIPE)
    except grammar.UsageError as error:
        return _fail(str(error), error.hint, EXIT_USAGE)
    except streams.StreamError as error:
        return _fail(str(error), "", EXIT_IO)
    except Exception as error:  # the outermost: whatever it is, a person gets a line of it and an exit code
        before = _interrupt_before(error)
        if before is not None:
            _die_of(before)
        return tell_failure(error)


def _interrupt_before(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt on whose way out this went wrong, if it is that: it strikes anywhere, where a wait
    has just let go of its lock, say, so that leaving its ``with`` fails.
    """
    cause = error.__context__
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause


def _die_of(interrupt: KeyboardInterrupt) -> NoReturn:
    streams.die_of(interrupt.number if isinstance(interrupt, streams.Asked) else signal.SIGINT)


def _run_verb(arguments: Namespace) -> int:
    verb: str = arguments.verb
    if verb == "serve":
        return _serve(arguments.daemon_arguments)
    if verb == "pub":
        from towpath.cli import pub

        return pub.run(arguments)
    if verb == "sub":
        from towpath.cli import sub

        return sub.run(arguments)
    if verb == "take":
        from towpath.cli import take

        return take.run(arguments)
    if verb == "run":
        from towpath.cli import run as running

        return running.run(arguments)
    if verb in ("call", "answer"):
        from towpath.cli import services

        return services.call(arguments) if verb == "call" else services.answer(arguments)
    if verb == "lock":
        from towpath.cli import lock

        return lock.run(arguments)
    if verb == "locks":
        from towpath.cli import locks

        return locks.run(arguments)
    if verb in ("get", "set"):
        from towpath.cli import states

        return states.get(arguments) if verb == "get" else states.set_value(arguments)
    if verb == "store":
        from towpath.cli import store

        return store.run(arguments)
    if verb == "tap":
        from towpath.cli import tap

        return tap.run(arguments)
    if verb == "replay":
        from towpath.cli import replay

        return replay.run(arguments)
    if verb == "places":
        from towpath.cli import places

        return places.run(arguments)
    if verb == "top":
        from towpath.cli import top

        return top.run(arguments)
    if verb == "advise":
        from towpath.cli import advise

        return advise.run(arguments)
    if verb == "completion":
        from towpath.cli import completion

        return completion.run(arguments)
    from towpath.cli import registry

    return registry.VERBS[verb](arguments)


def _serve(arguments: Sequence[str]) -> int:
    try:
        from towpath_broker.cli import main
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("towpath_broker"):
            raise
        return _fail(
            "the daemon is not installed, only the client library",
            "install it with: pip install 'towpath[broker]'",
            EXIT_UNAVAILABLE,
        )
    return main(list(arguments))


def tell_failure(error: Exception) -> int:
    """Tell of an exception, and give its exit code."""
    if os.environ.get("TOWPATH_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    from towpath.errors import TowpathError

    if isinstance(error, TowpathError):
        return _fail(error.message, error.hint, error.row.exit_code)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", _HINTS.get(error.errno or 0, ""), EXIT_IO)
    return _fail(
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug in Towpath: please report it with what TOWPATH_TRACEBACK=1 shows",
        EXIT_BUG,
    )


def _fail(message: str, hint: str, exit_code: int) -> int:
    from towpath.cli.text import one_line

    streams.warn(one_line(message))
    if hint:
        streams.note(f"hint: {one_line(hint)}")
    return exit_code
