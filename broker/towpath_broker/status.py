"""What the daemon says of itself: the core's part, completed by what only the shell knows.

The supervisor says which gateways run, the gateways themselves where they listen and what they counted;
here the two are put together. Pure but for the clock of the start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from towpath import convert, model
from towpath._version import __version__
from towpath.v1 import frame_pb2
from towpath_broker.core import effects
from towpath_broker.local import translate
from towpath_broker.rings.traffic import RingTraffic

WARNINGS_MAX: Final = 100
"""Of what an operator should know, the latest are kept."""


@dataclass
class StatusBoard:
    """Collects what the status shows.

    Attributes:
        incarnation: counts the starts of the core on this host.
        counters: asked for whenever a status is.
        traffic: who looks at the rings.
        contents_of: what a channel of the data plane holds.
    """

    socket: str
    started_at_ns: int
    incarnation: int
    counters: Callable[[], Mapping[str, int]]
    traffic: Callable[[], RingTraffic]
    contents_of: translate.ContentsOf
    _gateways: list[dict[str, Any]] = field(default_factory=list)
    _reports: dict[str, frame_pb2.ReportGatewayRequest] = field(default_factory=dict)
    _warnings: dict[str, None] = field(default_factory=dict)

    def set_gateways(self, gateways: Sequence[dict[str, Any]]) -> None:
        """Take what the supervisor says of the gateways; each has name, state, pid, restarts, detail,
        endpoints.
        """
        self._gateways = list(gateways)
        names = {gateway["name"] for gateway in gateways}
        self._reports = {name: report for name, report in self._reports.items() if name in names}

    def set_report(self, gateway: str, report: frame_pb2.ReportGatewayRequest) -> None:
        """Take what a gateway says of itself."""
        self._reports[gateway] = report

    def warn(self, message: str) -> None:
        """Keep a warning, once."""
        self._warnings.pop(message, None)
        self._warnings[message] = None
        while len(self._warnings) > WARNINGS_MAX:
            del self._warnings[next(iter(self._warnings))]

    def forget_warnings(self) -> None:
        """The configuration was read anew: what was wrong with the old one is no longer of interest."""
        self._warnings.clear()

    def status(self, told: effects.StatusTold) -> model.Status:
        """Return the whole status; of channels that are listed otherwise, those where there was traffic."""
        channels = [channel.name for channel in told.channels]
        return model.Status(
            version=__version__,
            pid=os.getpid(),
            incarnation=self.incarnation,
            started_at_ns=self.started_at_ns,
            socket=self.socket,
            sessions=len(told.sessions),
            channels=tuple(translate.channel_model(channel, self.contents_of) for channel in told.channels),
            bindings=tuple(translate.binding_model(binding) for binding in told.bindings),
            gateways=tuple(self._gateway(gateway) for gateway in self._gateways),
            counters=self.counters(),
            warnings=tuple(self._warnings),
            traffic=self.traffic().by_channel(channels) if channels else self.traffic().all_channels(),
            session_list=tuple(self._session(session) for session in told.sessions),
        )

    def frame(self, call: int, told: effects.StatusTold) -> frame_pb2.Frame:
        """Return the whole status as the answer to a call."""
        return frame_pb2.Frame(id=call, get_status_response=convert.status_to_proto(self.status(told)))

    def _session(self, session: effects.SessionView) -> model.SessionInfo:
        traffic = self.traffic()
        return model.SessionInfo(
            id=session.id,
            name=session.name,
            principal=session.principal,
            pid=session.pid,
            gateway=session.gateway,
            publishers=len(session.sources),
            subscribers=len(session.readers),
            published=traffic.published(session.sources),
            pending_bytes=traffic.pending_bytes(session.readers),
        )

    def _gateway(self, gateway: dict[str, Any]) -> model.GatewayInfo:
        report = self._reports.get(gateway["name"])
        return model.GatewayInfo(
            name=gateway["name"],
            state=cast(model.GatewayState, gateway["state"]),
            pid=int(gateway["pid"] or 0),
            restarts=int(gateway["restarts"]),
            # The supervisor's word goes with the pid; a report may still be that of the process before.
            endpoints=dict(gateway.get("endpoints") or {}),
            counters=dict(report.counters) if report else {},
            detail=gateway["detail"] or (report.detail if report else ""),
        )
