"""What each binding has done, and telling the daemon of it.

Theory of operation
    A :class:`Tally` is one binding's account; its adapter writes it. The :class:`Reporter` sends what
    changed: a change of state at once, counters and errors at most once per ``REPORT_INTERVAL_S``, and
    nothing while nothing changes. So an idle bridge has no timer and sends nothing. Many reports go in
    several calls, because the daemon takes no request of any length.

Invariants
    The last change is always told, in the end. A report that could not be sent is told again, whole, later.
    Counters never go backwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from towpath import wire
from towpath.errors import ConnectionLost, PermissionDenied, Timeout, TowpathError, Unavailable
from towpath.model import BindingReport, BindingState
from towpath_broker.gateways.bridge.ports import Client
from towpath_broker.log import log

REPORT_INTERVAL_S: Final = 1.0
CALL_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX // 4
"""Reports in one call, about; or one that is longer, which a command line of ``COMMAND_BYTES_MAX`` makes half
as long as a request may be."""
_REPORT_COST_BYTES: Final = 256
"""What a report takes beyond its texts, at most."""


class Tally:
    """One binding's account.

    Args:
        on_change: called after each change; True for one that is to be told at once.
        clock_ns: nanoseconds since the epoch.

    Attributes:
        As in :class:`towpath.model.BindingReport`.
    """

    def __init__(
        self, on_change: Callable[[bool], None], *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._on_change = on_change
        self._clock_ns = clock_ns
        self.state: BindingState = "pending"
        self.detail = ""
        self.messages_in = 0
        self.bytes_in = 0
        self.messages_out = 0
        self.bytes_out = 0
        self.refused = 0
        self.restarts = 0
        self.last_error: TowpathError | None = None
        self.last_error_at_ns = 0

    def set_state(self, state: BindingState, detail: str = "", error: TowpathError | None = None) -> None:
        """Say how the binding fares from now on, and why if something went wrong."""
        if error is not None:
            self._note(error)
        elif (state, detail) == (self.state, self.detail):
            return
        self.state = state
        self.detail = detail
        self._on_change(True)

    def count_in(self, messages: int, payload_bytes: int) -> None:
        """Messages that were published."""
        self.messages_in += messages
        self.bytes_in += payload_bytes
        self._on_change(False)

    def count_out(self, messages: int, frame_bytes: int) -> None:
        """Messages that were written out, and their bytes with framing."""
        self.messages_out += messages
        self.bytes_out += frame_bytes
        self._on_change(False)

    def refuse(self, count: int, error: TowpathError) -> None:
        """Count frames or messages that were not carried, and say why the last of them was not."""
        self.refused += count
        self._note(error)
        self._on_change(False)

    def count_restart(self) -> None:
        """The mechanism is begun anew."""
        self.restarts += 1
        self._on_change(False)

    def report(self) -> BindingReport:
        """The account as it stands."""
        return BindingReport(
            state=self.state,
            detail=self.detail,
            messages_in=self.messages_in,
            bytes_in=self.bytes_in,
            messages_out=self.messages_out,
            bytes_out=self.bytes_out,
            refused=self.refused,
            restarts=self.restarts,
            last_error=self.last_error,
            last_error_at_ns=self.last_error_at_ns,
        )

    def _note(self, error: TowpathError) -> None:
        self.last_error = error
        self.last_error_at_ns = self._clock_ns()


class Reporter:
    """Sends the tallies' changes to the daemon."""

    def __init__(self, client: Client, *, interval_s: float = REPORT_INTERVAL_S) -> None:
        self._client = client
        self._interval_s = interval_s
        self._tallies: dict[int, Tally] = {}
        self._changed: set[int] = set()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def open(self, binding: int) -> Tally:
        """Begin a binding's account."""
        tally = Tally(lambda at_once: self._on_change(binding, at_once))
        self._tallies[binding] = tally
        return tally

    def close(self, binding: int) -> None:
        """End a binding's account; what was not told yet is dropped with the binding."""
        del self._tallies[binding]
        self._changed.discard(binding)

    def tell_all(self) -> None:
        """Tell everything again: the daemon has forgotten it."""
        self._changed.update(self._tallies)
        self._due.set()

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await self._due.wait()
            await self.flush()

    async def flush(self) -> None:
        """Tell what changed, now. That the daemon does not answer is no error: it is told later."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reports = {binding: self._tallies[binding].report() for binding in self._changed}
        self._changed.clear()
        for part in _in_calls(reports):
            await self._tell(part)

    async def _tell(self, reports: Mapping[int, BindingReport]) -> None:
        try:
            await self._client.report_bindings(reports)
        except (ConnectionLost, Timeout, Unavailable):
            log("bridge.report_postponed", level="debug", bindings=len(reports))
            for binding in reports:
                self._on_change(binding, False)
        except PermissionDenied:
            # Run by hand, not by the daemon. It carries all the same, and the log has its states.
            log("bridge.report_refused", level="debug", bindings=len(reports))

    def _on_change(self, binding: int, at_once: bool) -> None:
        if binding not in self._tallies:
            return
        self._changed.add(binding)
        if at_once:
            self._due.set()
        elif self._timer is None and not self._due.is_set():
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._due.set()


def _in_calls(reports: Mapping[int, BindingReport]) -> Iterator[dict[int, BindingReport]]:
    """Divide reports into what one call carries."""
    part: dict[int, BindingReport] = {}
    part_bytes = 0
    for binding, report in reports.items():
        error = report.last_error
        texts = (report.detail, error.message, error.hint) if error else (report.detail,)
        cost_bytes = _REPORT_COST_BYTES + sum(len(text.encode(errors="replace")) for text in texts)
        if part and part_bytes + cost_bytes > CALL_BYTES_MAX:
            yield part
            part, part_bytes = {}, 0
        part[binding] = report
        part_bytes += cost_bytes
    if part:
        yield part
