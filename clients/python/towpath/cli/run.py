"""``towpath run``: a program with its standard streams on channels.

Theory of operation
    The program is a child with a pipe for each stream that a channel was given for; the other streams are
    ours. A thread per stream carries (``towpath.pipes.flows``), attached before the program starts, so that
    it misses nothing. Its standard output ends as in a shell's pipeline: when nobody has it open any more,
    which may be a grandchild. Then everything is published, and its exit status is ours: 128 + N when signal
    N ended it. SIGTERM and SIGHUP are passed on; a terminal's Ctrl-C reaches it by itself.

    When a channel fails under it, the program sees its stream end (SIGPIPE, or the end of its input), and
    when it has ended, what failed is told, and is the exit code.

Not here: running a program for each message (``running``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from typing import IO, Final

from towpath.cli.connection import connect
from towpath.cli.frames import Refusals, framing_options
from towpath.cli.grammar import UsageError
from towpath.cli.running import check_command
from towpath.errors import ConnectionLost, TowpathError
from towpath.framing import FRAME_BYTES_MAX_LIMIT
from towpath.pipes.flows import Inlet, Outlet

END_S: Final = 1.0
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP)


class _Carrier:
    """A thread that carries; its failure is kept for when the program has ended."""

    def __init__(self, carry: Callable[[], None]) -> None:
        self.failure: TowpathError | None = None
        self._carry = carry
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._carry()
        except TowpathError as error:
            self.failure = error

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)


def run(arguments: Namespace) -> int:
    """Run the program to its end; return its exit status, or the code of what failed."""
    if not (arguments.publish or arguments.subscribe):
        raise UsageError(
            "run needs --out CHANNEL, --in CHANNEL or both", "towpath run --out orders -- ./program"
        )
    check_command(arguments.command)
    framing = framing_options(arguments, bytes_max=FRAME_BYTES_MAX_LIMIT)
    with ExitStack() as stack:
        client = stack.enter_context(connect(arguments))
        outlet = Outlet(client, arguments.subscribe, framing) if arguments.subscribe else None
        inlet = Inlet(client, arguments.publish, framing) if arguments.publish else None
        process = _start(arguments, has_input=outlet is not None, has_output=inlet is not None)
        giving = taking = None
        if outlet is not None and process.stdin is not None:
            giving = _Carrier(_feeding(outlet, process.stdin, arguments.count))
        if inlet is not None and process.stdout is not None:
            taking = _Carrier(_reading(inlet, process.stdout))
        status = process.wait()
        if taking is not None:
            taking.join()
        if outlet is not None and giving is not None:
            outlet.close()  # it waits for messages that nobody would read
            giving.join(END_S)  # unless what the program left behind holds its input, and does not read
    code = 0
    for flow, what in ((inlet, "not published"), (outlet, "not given to the program")):
        if flow is not None and flow.refused and not arguments.quiet:
            refusals = Refusals(what)
            refusals.note(flow.refused, flow.last_error)
            code = refusals.conclude()
    for carrier in (taking, giving):
        if carrier is not None and carrier.failure is not None:
            raise carrier.failure
    if status:
        return status if status > 0 else 128 - status
    return code


def _start(arguments: Namespace, *, has_input: bool, has_output: bool) -> subprocess.Popen[bytes]:
    """Start the program; from then on what would end us is passed on to it."""
    environment = dict(os.environ)
    if arguments.socket:
        environment["TOWPATH_SOCKET"] = os.path.abspath(arguments.socket)
    process = subprocess.Popen(
        arguments.command,
        stdin=subprocess.PIPE if has_input else None,
        stdout=subprocess.PIPE if has_output else None,
        bufsize=0,
        env=environment,
    )
    for number in _PASSED_ON:
        signal.signal(number, lambda number, _: process.send_signal(number))
    # A function, and not SIG_IGN, which the program would have inherited.
    signal.signal(signal.SIGINT, lambda *_: None)
    return process


def _feeding(outlet: Outlet, stream: IO[bytes], count: int | None) -> Callable[[], None]:
    def feed() -> None:
        try:
            with stream:
                outlet.run(stream.fileno(), count_max=count)
        except ConnectionLost:
            pass  # closed by ourselves, as the program has ended
        finally:
            outlet.close()

    return feed


def _reading(inlet: Inlet, stream: IO[bytes]) -> Callable[[], None]:
    def read() -> None:
        try:
            with stream:
                inlet.run(stream.fileno())
        finally:
            inlet.close()

    return read
