"""The process that carries between a pipe and a channel: ``python -m towpath.pipes.pump PLAN``.

Theory of operation
    It forks at once. The first process waits for the second's report, passes it on to who asked, and ends;
    the second leads a session of its own, so that neither a terminal's Ctrl-C nor the end of who asked
    reaches it, and holds none of their streams.

    The inlet and the outlet each have a thread. Of a pipe that is only read, nobody tells that its reader has
    gone until something is written; so one more thread sleeps in poll(2) on it, and closes the outlet then.

Not here: what is carried how (``flows``).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import syslog
import threading
from typing import NoReturn

import towpath
from towpath import convert
from towpath.errors import ConnectionLost, TowpathError
from towpath.pipes import READY, Plan
from towpath.pipes.flows import Inlet, Outlet
from towpath.wording import plural


def main() -> int:
    """Start the pump in the background; report how that went on standard output."""
    plan = Plan.from_json(sys.argv[1])
    receiving, sending = os.pipe()
    if os.fork() == 0:
        os.close(receiving)
        _leave_home()
        _pump(plan, sending)
    os.close(sending)
    os.close(plan.fd)
    with open(receiving, "rb") as report:
        sys.stdout.buffer.write(report.read())
    return 0


def _leave_home() -> None:
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)


def _pump(plan: Plan, report: int) -> NoReturn:
    status = 1
    try:
        try:
            pump = Pump(plan)
        except TowpathError as error:
            os.write(report, convert.error_to_proto(error).SerializeToString())
        else:
            os.chdir("/")
            os.write(report, READY)
            os.close(report)
            pump.run()
            status = 0
    except BaseException as error:  # the process's outermost frame: what follows belongs to the parent
        _log(f"the pump of a pipe failed: {error!r}")
    finally:
        os._exit(status)


class Pump:
    """Both directions of one pipe or socket, as far as its plan has them.

    Raises:
        TowpathError: it cannot be attached.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        name = " ".join(filter(None, (plan.publish, plan.subscribe)))
        self._client = towpath.connect(plan.url, name=f"pipe {name}")
        self._outlet = Outlet(self._client, plan.subscribe, plan.framing) if plan.subscribe else None
        self._inlet = Inlet(self._client, plan.publish, plan.framing) if plan.publish else None

    def run(self) -> None:
        """Carry until the pipe has ended."""
        inlet = threading.Thread(target=self._take, daemon=True)
        inlet.start()
        if self._outlet is not None:
            threading.Thread(target=self._watch, args=(self._outlet, inlet), daemon=True).start()
            self._give(self._outlet)
        inlet.join()
        with contextlib.suppress(TowpathError):
            self._client.close()

    def _take(self) -> None:
        if self._inlet is None:
            return
        try:
            self._inlet.run(self._plan.fd)
        except TowpathError as error:
            self._tell(f"not everything was published: {error.message}")
        finally:
            if self._inlet.refused:
                self._tell(f"{self._inlet.refused} frames were not published: {self._inlet.last_error}")
            self._inlet.close()
        self._end(socket.SHUT_RD)

    def _give(self, outlet: Outlet) -> None:
        try:
            outlet.run(self._plan.fd)
        except ConnectionLost:
            pass  # closed by _watch: nobody reads any more
        except TowpathError as error:
            self._tell(f"nothing more comes: {error.message}")
        finally:
            if outlet.refused:
                self._tell(f"{plural(outlet.refused, 'message')} not written: {outlet.last_error}")
            with contextlib.suppress(TowpathError):
                outlet.close()
        self._end(socket.SHUT_WR)

    def _end(self, direction: int) -> None:
        """Say to the other end of a socket that one direction is over; a pipe has no other, and closes."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._plan.fd)) as sock:
            sock.shutdown(direction)

    def _watch(self, outlet: Outlet, inlet: threading.Thread) -> None:
        poller = select.poll()
        poller.register(self._plan.fd, 0)
        while not any(events & (select.POLLERR | select.POLLHUP) for _, events in poller.poll()):
            pass
        inlet.join()  # what was written before the end is published
        with contextlib.suppress(TowpathError):
            outlet.close()

    def _tell(self, what: str) -> None:
        plan = self._plan
        _log(" ".join(filter(None, ("pipe", plan.publish, plan.subscribe))) + f": {what}")


def _log(line: str) -> None:
    syslog.openlog("towpath", syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_WARNING, line)


if __name__ == "__main__":
    sys.exit(main())
