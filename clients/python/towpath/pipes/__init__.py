"""Pipes that programs hold: a real pipe, or a pair of sockets, with a channel at the other end.

Theory of operation
    Somebody has to carry bytes between the pipe and the channel. That is a process of its own, the pump
    (``pump``): so the pipe outlives the client that asked for it, which may hand it to a subprocess and end.
    It is started here, reports when it is attached (nothing published after that is missed), and is nobody's
    child by then. It acts for the uid that asked, with that uid's rights, unlike a binding, which acts with
    the bridge's; so anybody may open pipes. It ends with the pipe: when the last writer has closed it and
    everything is published, or when the last reader has.

    What goes wrong later closes the pipe, which its holder sees as it would for any other program at the far
    end (SIGPIPE and EPIPE for who writes, the end for who reads), and goes to syslog(3).

Not here: bindings, which the daemon keeps (``towpath.bindings``); the carrying itself (``flows``).
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Final, Literal

from towpath import convert
from towpath.errors import InternalError, InvalidArgument, host_limits
from towpath.framing import Framing, FramingOptions
from towpath.v1 import error_pb2

Mode = Literal["r", "w"]

START_TIMEOUT_S: Final = 30.0
"""How long a pump may take to be attached; on an idle host it is a third of a second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pump is to do.

    Attributes:
        url: of the daemon, as for ``towpath.connect``; None to search.
        publish: the channel that gets what is written into the pipe; empty for none.
        subscribe: the channel or pattern whose messages are read from the pipe; empty for none.
        framing: how messages lie in the pipe.
        fd: the pump's end.
    """

    url: str | None
    publish: str
    subscribe: str
    framing: FramingOptions
    fd: int

    def to_json(self) -> str:
        """As it travels on a command line."""
        plan = asdict(self)
        plan["framing"]["delimiter"] = self.framing.delimiter.hex()
        return json.dumps(plan)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        plan = json.loads(text)
        framing = plan.pop("framing")
        framing["framing"] = Framing(framing["framing"])
        framing["delimiter"] = bytes.fromhex(framing["delimiter"])
        return cls(framing=FramingOptions(**framing), **plan)


def framing_options(framing: FramingOptions | str) -> FramingOptions:
    """Return what was given, or the framing of that name.

    Raises:
        InvalidArgument: there is none, or it needs to be told more.
    """
    if isinstance(framing, FramingOptions):
        return framing
    try:
        return FramingOptions(Framing(framing))
    except ValueError as error:
        if isinstance(error, InvalidArgument):
            raise
        names = ", ".join(Framing)
        raise InvalidArgument(f"there is no framing {framing!r}", hint=f"it is one of: {names}") from None


def open_pipe(
    url: str | None, channel: str, mode: Mode, *, framing: FramingOptions | str = "line"
) -> io.FileIO:
    """Open one end of a pipe(7) whose other end is a channel; see :meth:`towpath.Client.open_pipe`."""
    if mode not in ("r", "w"):
        raise InvalidArgument(f"mode {mode!r} of a pipe", hint="r reads the channel, w publishes on it")
    options = framing_options(framing)
    with host_limits("a pipe"):
        reading, writing = os.pipe()
    mine, theirs = (reading, writing) if mode == "r" else (writing, reading)
    end = io.FileIO(mine, f"{mode}b")
    try:
        if mode == "r":
            _start(Plan(_lasting(url), "", channel, options, theirs))
        else:
            _start(Plan(_lasting(url), channel, "", options, theirs))
    except BaseException:
        end.close()
        raise
    finally:
        os.close(theirs)
    return end


def open_pair(
    url: str | None, publish: str, subscribe: str, *, framing: FramingOptions | str = "line"
) -> socket.socket:
    """Open a socket whose other end is two channels; see :meth:`towpath.Client.open_pair`."""
    options = framing_options(framing)
    with host_limits("a socketpair"):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        try:
            _start(Plan(_lasting(url), publish, subscribe, options, theirs.fileno()))
        except BaseException:
            mine.close()
            raise
    return mine


def _lasting(url: str | None) -> str | None:
    """The same address wherever the pump's working directory is."""
    return url if url is None or "://" in url or url.startswith("unix:") else os.path.abspath(url)


def _start(plan: Plan) -> None:
    """Start the pump and wait until it is attached.

    Raises:
        TowpathError: what it could not be attached for.
    """
    # -P: a pipe must not run what happens to lie in the working directory.
    command = [sys.executable, "-P", "-m", "towpath.pipes.pump", plan.to_json()]
    try:
        with host_limits("a pipe's pump"):
            started = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=(plan.fd,),
                check=False,
                timeout=START_TIMEOUT_S,
            )
    except subprocess.TimeoutExpired:
        raise InternalError("the pump of a pipe did not start in time") from None
    if started.returncode != 0 or not started.stdout:
        raise InternalError(f"the pump of a pipe ended with {started.returncode} before it began")
    if started.stdout != READY:
        raise convert.error_from_proto(error_pb2.Error.FromString(started.stdout))


READY: Final = b"ready\n"
"""What the pump reports when it is attached; anything else is an Error. (No Error begins so.)"""
