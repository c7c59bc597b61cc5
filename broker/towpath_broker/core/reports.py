"""How bindings fare, as the bridge reports it, and who waits to hear.

A binding without a report is PENDING. ``GetBinding(wait_settled)`` waits until its binding is in any other
state; it is answered once: by the report that settles it, by a refusal when the binding is deleted, or not
at all when the caller cancels or its session ends. When the session that reported on a binding ends, the
binding is PENDING again: what a bridge that is gone said of its processes no longer holds. The last error
is kept, since that is what an operator looks for after a crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from towpath.errors import LimitExceeded

from .commands import BindingReport, BindingState
from .ids import BindingId, CallId, SessionId
from .sessions import Session

PENDING = BindingReport()


@dataclass(frozen=True, slots=True)
class Waiter:
    """A call that waits for a binding to settle."""

    session: Session
    call: CallId


class Reports:
    """Reports by binding, and the waiters."""

    def __init__(self) -> None:
        self._reports: dict[BindingId, BindingReport] = {}
        self._reporters: dict[BindingId, SessionId] = {}
        self._waiters: dict[BindingId, list[Waiter]] = {}

    def get(self, binding: BindingId) -> BindingReport:
        """Return what was last reported of a binding."""
        return self._reports.get(binding, PENDING)

    def take(
        self, reporter: Session, reports: Mapping[BindingId, BindingReport]
    ) -> list[tuple[Waiter, BindingId]]:
        """Keep reports of bindings that exist and return the calls that they settle."""
        settled: list[tuple[Waiter, BindingId]] = []
        for binding, report in reports.items():
            self._reports[binding] = report
            self._reporters[binding] = reporter.id
            if report.state is not BindingState.PENDING:
                settled.extend((waiter, binding) for waiter in self._pop_waiters(binding))
        return settled

    def forget(self, binding: BindingId) -> list[Waiter]:
        """Forget a binding that is deleted and return the calls that waited for it."""
        self._reports.pop(binding, None)
        self._reporters.pop(binding, None)
        return self._pop_waiters(binding)

    def wait(self, session: Session, call: CallId, binding: BindingId, waits_max: int) -> None:
        """Let a call wait for a binding to settle.

        Raises:
            LimitExceeded: the session has as many waiting calls as it may have.
        """
        assert call not in session.waits
        if len(session.waits) >= waits_max:
            raise LimitExceeded(
                f"the session has {len(session.waits)} waiting calls: waits_per_session_max is {waits_max}"
            )
        session.waits[call] = binding
        self._waiters.setdefault(binding, []).append(Waiter(session, call))

    def cancel(self, session: Session, call: CallId) -> None:
        """Let a call wait no longer; unknown calls are ignored."""
        binding = session.waits.pop(call, None)
        if binding is not None:
            waiters = self._waiters[binding]
            waiters.remove(Waiter(session, call))
            if not waiters:
                del self._waiters[binding]

    def end_session(self, session: Session) -> None:
        """Forget what a session waits for and what it reported."""
        for call in tuple(session.waits):
            self.cancel(session, call)
        for binding in [each for each, reporter in self._reporters.items() if reporter == session.id]:
            del self._reporters[binding]
            last = self._reports[binding]
            self._reports[binding] = BindingReport(
                last_error=last.last_error, last_error_at_ns=last.last_error_at_ns
            )

    def waiting(self) -> int:
        """Return how many calls wait."""
        return sum(map(len, self._waiters.values()))

    def _pop_waiters(self, binding: BindingId) -> list[Waiter]:
        waiters = self._waiters.pop(binding, [])
        for waiter in waiters:
            del waiter.session.waits[waiter.call]
        return waiters
