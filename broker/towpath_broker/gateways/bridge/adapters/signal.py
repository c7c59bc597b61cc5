"""``signal:NAME`` inward, ``signal:NAME@TARGET`` outward: signals.

Theory of operation, inward
    The bridge itself receives. A handler (``_native``) writes what the kernel tells of each signal into a
    pipe, and the pipe is read here: one message per signal, with who sent it and its value in headers too::

        signal         RTMIN+3
        signal-pid     4711        0 where the kernel sent it
        signal-uid     1000
        signal-code    queue       sigqueue(3); or user: kill(2); tkill; timer; mesgq; asyncio; kernel
        signal-value   42          of 64 bits, without a sign: what sigqueue(3) was given; else 0

    The payload is the same as JSON, or with ``format`` the value alone. Which process it is stands in the pid
    file, in ``towpath status``, and nowhere else: it changes when the bridge is started again. The pid file
    keeps its place; it is there while signals are received. So ``kill -USR1 $(cat .../signal-USR1.pid)``.

Theory of operation, outward
    A message becomes a signal with a value: the header ``signal-value``, else of the payload what ``format``
    says: its first 8 bytes, little endian (``binary``; fewer are filled up), a decimal number (``text``), or
    the JSON object's ``value``. The process is held as a pidfd, so that a recycled pid is never hit; how it
    is found is in ``processes``. What the binding's owner may not signal is refused. A topic's plain messages
    (no headers; ``binary``, or ``text`` of at most 18 characters) become signals where they are received, in
    a thread and in C (``aiming``); for what is not plain, and for a queue's, there is the way by the event
    loop. Both keep the channel's order.

What users should know
    *Standard signals coalesce*: of several that come before one was taken, the kernel keeps one, and tells
    nobody how many there were. What is counted is what it delivered. *Realtime signals queue*, in order, up
    to RLIMIT_SIGPENDING; beyond that sigqueue(3) fails with EAGAIN at whoever sends, and nothing is lost that
    was accepted. kill(2) loses its origin there.
    *Back-pressure*: while the channel's publishers wait, signals stay in the kernel's queue.
    *A realtime signal holds one integer*, nothing else of a message comes through.
    *Outward, a full queue* (EAGAIN) is waited for: the kernel does not tell when there is room, so it is
    tried again, after 1 ms and at most 100 ms. Among the processes of a directory one that does not take its
    signals is passed over after ``PATIENCE_S``, and that is counted.
    *Who subscribes* to ``signal:NAME@/DIRECTORY/`` writes a pid file into it; at most ``TARGETS_MAX``.
    *A pid in the URL* stands for the process that has it when the binding is made. When that process ends,
    the binding has failed, for good; so it has after a restart of the daemon, when the number may be
    another's. A pid file or a unit is looked at again whenever there is something to send.
    *While the bridge is started again* nobody receives: what is sent to the old pid fails (ESRCH).

Sources: signal(7), sigqueue(3), sigaction(2), pidfd_send_signal(2).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import struct
from typing import Final

from towpath.bindings.fifo import WhenAbsent
from towpath.bindings.signal import SignalFormat, SignalOptions, parse_signal, signal_name
from towpath.errors import BadFrame, BindingFailed, InvalidArgument, NotSupported, PermissionDenied
from towpath.model import Direction, Headers
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.messages import MessageOutflow, Refused
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.processes import Process, remove_pid_file, write_pid_file
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.targets import Target

try:
    from towpath_broker.gateways.bridge import _native
    from towpath_broker.gateways.bridge.aiming import Aim
except ImportError:  # built without it
    _native = None  # type: ignore[assignment]

_RECORD: Final = struct.Struct("iiiIQ")
_READ_BYTES: Final = _RECORD.size * 1024
PATIENCE_S: Final = 1.0
"""How long one of several processes may have no room for a signal."""
_DELAY_S_MIN: Final = 0.001
_DELAY_S_MAX: Final = 0.1
_ABSENT_DELAY_S: Final = 0.5
"""Between two looks for somebody to signal, while a message waits for it."""
RECEIVABLE: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGIO,
        signal.SIGPWR,
    }
)
"""Standard signals that may be received. The others mean something to the bridge itself."""
_CODES: Final = {0: "user", -1: "queue", -2: "timer", -3: "mesgq", -4: "asyncio", -6: "tkill"}
VALUE_MAX: Final = (1 << 64) - 1


class SignalAdapter:
    """One signal, one way.

    Args:
        place: as :func:`parse_signal` takes it.
        direction: ``in`` or ``out``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        keeping: what outlives the bridge.
        owner: whose binding it is: ``uid:1000``.

    Raises:
        InvalidArgument: a target inward, none outward, or a signal that cannot be received.
        NotSupported: the extension was not built.
    """

    def __init__(
        self,
        place: str,
        direction: Direction,
        options: SignalOptions,
        carrier: Carrier,
        tally: Tally,
        keeping: BindingKeeping,
        *,
        owner: str,
    ) -> None:
        if _native is None:
            raise NotSupported(
                "signal: bindings need the C extension", hint="install from a wheel, or with gcc"
            )
        self._place = parse_signal(f"signal:{place}", place)
        self._name = signal_name(self._place.number)
        self._options = options
        self._carrier = carrier
        self._tally = tally
        self._keeping = keeping
        self._owner = owner
        self._direction = direction
        self._check()

    def _check(self) -> None:
        number = self._place.number
        if self._direction == "out":
            if self._place.kind is None:
                raise InvalidArgument(
                    f"signal:{self._name} says to nobody whom it signals",
                    hint=f"name a target: signal:{self._name}@/run/app.pid, @PID, @/DIRECTORY/ or @unit:NAME",
                )
            return
        if self._place.kind is not None:
            raise InvalidArgument(
                "inward a signal comes from anybody: no target", hint=f"write signal:{self._name}"
            )
        if number < signal.SIGRTMIN and number not in RECEIVABLE:
            known = ", ".join(sorted(signal_name(each) for each in RECEIVABLE))
            raise InvalidArgument(
                f"{self._name} means something to the bridge itself", hint=f"{known}, RTMIN to RTMIN+30"
            )

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the pid file cannot be written; the process in the URL has ended.
            TowpathError: the channel takes or gives no more.
        """
        if self._direction == "in":
            await self._run_in(stop)
        else:
            await self._run_out(stop)

    # -- inward ----------------------------------------------------------------------------------------------

    async def _run_in(self, stop: Stop) -> None:
        number = self._place.number
        pid_file = self._options.pid_file or default_pid_file(self._name)
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        publishing = Publishing(self._carrier, self._tally)
        try:
            _native.open_signal(number, write_end)
            if pid_file:
                write_pid_file(pid_file)
            self._tally.set_state("running", f"pid {os.getpid()}" + (f", in {pid_file}" if pid_file else ""))
            while not stop.is_set:
                if not await self._take(read_end, publishing):
                    await stop.readable(read_end)
            remove_pid_file(pid_file)  # who looks now finds nobody; what has come is carried
            while await self._take(read_end, publishing):
                pass
        finally:
            remove_pid_file(pid_file)
            _native.close_signal(number)
            os.close(write_end)
            os.close(read_end)

    async def _take(self, read_end: int, publishing: Publishing) -> bool:
        """Publish what has come; False when nothing has."""
        await asyncio.sleep(0)
        try:
            data = os.read(read_end, _READ_BYTES)
        except BlockingIOError:
            held = _native.resume_signal(self._place.number)
            if held is None:
                return False
            data = held
        headers = [self._headers_of(*record) for record in _RECORD.iter_unpack(data)]
        await publishing.publish([self._payload_of(each) for each in headers], headers)
        return True

    def _headers_of(self, number: int, code: int, pid: int, uid: int, value: int) -> Headers:
        return Headers(
            user={
                "signal": signal_name(number),
                "signal-pid": str(pid),
                "signal-uid": str(uid),
                "signal-code": _CODES.get(code, "kernel" if code > 0 else str(code)),
                "signal-value": str(value),
            }
        )

    def _payload_of(self, headers: Headers) -> bytes:
        user = headers.user
        if self._options.format is SignalFormat.TEXT:
            return user["signal-value"].encode()
        if self._options.format is SignalFormat.BINARY:
            return int(user["signal-value"]).to_bytes(8, "little")
        told = {
            "signal": user["signal"],
            "pid": int(user["signal-pid"]),
            "uid": int(user["signal-uid"]),
            "code": user["signal-code"],
            "value": int(user["signal-value"]),
        }
        return json.dumps(told).encode()

    # -- outward ---------------------------------------------------------------------------------------------

    async def _run_out(self, stop: Stop) -> None:
        target = Target(self._place, self._owner, self._keeping)
        ending = stop.child()
        outflow = MessageOutflow(self._carrier, self._tally, self._prepare)
        form = self._options.format or SignalFormat.BINARY
        aim = Aim(
            self._place.number,
            target,
            self._tally,
            is_text=form is SignalFormat.TEXT,
            on_counted=outflow.losses.count,
        )
        try:
            sink = _SignalSink(self._place.number, target, aim, self._tally, ending)
            sink.drops = self._options.when_absent is WhenAbsent.DROP and not self._carrier.is_settled
            await sink.look()
            if form is not SignalFormat.JSON:
                self._carrier.hand_on(aim.taker)
            try:
                await outflow.run(sink, ending)
                await outflow.flush(sink)
            finally:
                outflow.abandon()
            if target.error is not None and not stop.is_set:
                raise target.error
        finally:
            aim.close()
            target.close()

    def _prepare(self, message: ReceivedMessage) -> tuple[list[bytes], int]:
        return [b""], value_of(message, self._options.format or SignalFormat.BINARY)


class _SignalSink:
    """Signals to whoever the target is at the moment.

    Attributes:
        drops: what nobody is there for is counted, instead of waited with.
    """

    def __init__(self, number: int, target: Target, aim: Aim, tally: Tally, ending: Stop) -> None:
        self._number = number
        self._target = target
        self._aim = aim
        self._tally = tally
        self._ending = ending
        self._waiting: list[Process] | None = None  # who has not had this message yet; None: it is a new one
        self.drops = True

    async def look(self) -> None:
        """Find out who is there, and say so.

        Raises:
            BindingFailed, PermissionDenied: see :meth:`Target.refresh`.
        """
        await self._target.refresh(self._on_exit)
        self._aim.update()
        self._tell()

    def send_nowait(self, data: bytes, mark: int) -> bool:
        """As :meth:`Sink.send_nowait`."""
        if self._waiting is None:
            served = self._aim.take_served()
            if not served and not self._target.is_fresh():
                return False
            self._waiting = [each for each in self._target.processes if each.pidfd not in served]
            if served and not self._waiting:  # the others have ended meanwhile
                self._waiting = None
                return True
        return bool(self._waiting) and self._send(mark)

    async def send_waiting(self, data: bytes, mark: int, stop: Stop) -> bool:
        """As :meth:`Sink.send_waiting`."""
        loop = asyncio.get_running_loop()
        delay_s, began_s = _DELAY_S_MIN, loop.time()
        while not stop.is_set:
            if not self._waiting:
                await self.look()
                self._waiting = list(self._target.processes)
                if not self._waiting:
                    self._waiting = None
                    if self.drops:
                        loop.call_soon(self._tell)  # still waiting, whatever is said of a wait that has ended
                        raise Refused(BindingFailed(f"nobody to signal: {self._target.absent}"))
                    await stop.sleep(_ABSENT_DELAY_S)
                    continue
            if self._send(mark):
                return True
            if self._waiting and len(self._target.processes) > 1 and loop.time() - began_s > PATIENCE_S:
                self._refuse(len(self._waiting), "a process has no room for signals, and does not take any")
                self._waiting = None
                return True  # the others have it
            if self._waiting:
                await stop.sleep(delay_s)
                delay_s = min(2 * delay_s, _DELAY_S_MAX)
        return False

    def _send(self, value: int) -> bool:
        """Signal whoever has not been; True when somebody was and nobody is left."""
        assert self._waiting is not None
        left: list[Process] = []
        has_sent = False
        for process in self._waiting:
            try:
                _native.send_signal(process.pidfd, self._number, value)
                has_sent = True
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    left.append(process)
                elif error.errno == errno.ESRCH:
                    self._forget(process)
                elif error.errno == errno.EPERM:
                    denied = PermissionDenied(
                        f"the bridge may not signal process {process.pid}",
                        hint="that process is another user's than the daemon's",
                    )
                    if len(self._waiting) == 1 and not has_sent:
                        self._waiting = None
                        raise Refused(denied) from error
                    self._tally.refuse(1, denied)
                else:
                    raise
        self._waiting = left
        if has_sent and not left:
            self._waiting = None
            return True
        return False

    def _refuse(self, count: int, why: str) -> None:
        self._tally.refuse(count, BindingFailed(why, hint="see the state in: towpath status"))

    def _forget(self, process: Process) -> None:
        self._target.forget(process)
        self._aim.update()

    def _on_exit(self, process: Process) -> None:
        self._forget(process)
        self._tell()

    def _tell(self) -> None:
        pids = [process.pid for process in self._target.processes]
        if pids:
            shown = ", ".join(map(str, pids[:4])) + (f" and {len(pids) - 4} more" if len(pids) > 4 else "")
            self._tally.set_state("running", f"pid {shown}")
        elif self._target.error is not None:
            self._ending.set()
        else:
            self._tally.set_state("waiting", self._target.absent)


def value_of(message: ReceivedMessage, form: SignalFormat) -> int:
    """Return the value that a message stands for.

    Raises:
        BadFrame: it stands for none.
    """
    stated = message.headers.user.get("signal-value") if message.headers_raw else None
    if stated is None and form is SignalFormat.BINARY:
        return int.from_bytes(message.payload[:8], "little")
    try:
        if stated is not None:
            value = int(stated)
        elif form is SignalFormat.TEXT:
            value = int(message.payload)
        else:
            value = json.loads(message.payload)["value"]
        if type(value) is int and -(1 << 63) <= value <= VALUE_MAX:
            return value & VALUE_MAX
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise BadFrame(
        "a message has no value for a signal",
        hint=f"header signal-value, or a payload of format={form.value}; 64 bits",
    )


def default_pid_file(name: str) -> str:
    """Where the receiving process is named unless the binding says so; empty where no socket is known."""
    socket_path = os.environ.get("TOWPATH_SOCKET", "")
    return os.path.join(os.path.dirname(socket_path), f"signal-{name}.pid") if socket_path[:1] == "/" else ""
