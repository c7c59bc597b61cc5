"""The registry's calls, waiting on an event loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar, Unpack

from towpath import calls, model
from towpath.result import attempt_async
from towpath.waiting import CALL_TIMEOUT_S, binding_failure, deadline_ns

T = TypeVar("T")


class AsyncRegistry(ABC):
    """What can be asked of the registry; documented at :class:`towpath.Client`. :class:`AsyncClient` is
    one.
    """

    @abstractmethod
    async def _call(self, call: calls.Call[T], deadline: int | None = None) -> T:
        """Ask, and wait for the answer.

        Args:
            deadline: on the monotonic clock, in nanoseconds; None: the client's own.
        """

    async def pass_on(self, call: calls.Call[T], *, timeout: float | None = CALL_TIMEOUT_S) -> T:
        """Ask what has no method of its own here: for gateways, which pass requests on as they came."""
        return await self._call(call, deadline_ns(timeout))

    async def _all_pages(self, call: Callable[[str], calls.Call[tuple[list[T], str]]]) -> list[T]:
        listed, token = await self._call(call(""))
        while token:
            page, token = await self._call(call(token))
            listed += page
        return listed

    async def declare(
        self,
        name: str,
        *,
        kind: model.Kind | None = None,
        durable: bool | None = None,
        overflow: model.Overflow | None = None,
        ring_bytes: int | None = None,
        order: model.Order | None = None,
        history: int | None = None,
        stall_ms_max: int | None = None,
        **keeping: Unpack[model.KeepingOptions],
    ) -> model.ChannelInfo:
        """See :meth:`towpath.Client.declare`."""
        return await self._call(
            calls.declare(
                name,
                kind=kind,
                durable=durable,
                overflow=overflow,
                ring_bytes=ring_bytes,
                order=order,
                history=history,
                stall_ms_max=stall_ms_max,
                **keeping,
            )
        )

    async def undeclare(self, name: str, *, force: bool = False) -> None:
        """See :meth:`towpath.Client.undeclare`."""
        await self._call(calls.undeclare(name, force=force))

    async def channel_info(self, name: str) -> model.ChannelInfo:
        """See :meth:`towpath.Client.channel_info`."""
        return await self._call(calls.channel_info(name))

    async def channels(self, prefix: str = "") -> list[model.ChannelInfo]:
        """See :meth:`towpath.Client.channels`."""
        return await self._all_pages(lambda token: calls.channels(prefix, token))

    async def bind(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> model.BindingInfo:
        """See :meth:`towpath.Client.bind`."""
        deadline = deadline_ns(timeout)
        binding, created = await self.create_binding(
            channel, url, direction=direction, options=options, deadline=deadline
        )
        settled = await self._call(calls.get_binding(binding.id, wait_settled=True), deadline)
        if settled.report.state == "failed" and not keep:
            if created:
                await self._call(calls.delete_binding(settled.id), deadline)
            raise binding_failure(settled)
        return settled

    async def create_binding(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        deadline: int | None = None,
    ) -> tuple[model.BindingInfo, bool]:
        """Define a binding without waiting for the bridge; the second value says whether it is new.

        Args:
            deadline: on the monotonic clock, in nanoseconds; None: the client's own. The rest as for
                :meth:`bind`.
        """
        return await self._call(
            calls.create_binding(channel, url, direction=direction, options=options), deadline
        )

    async def unbind(
        self, binding: int | None = None, *, channel: str = "", url: str = ""
    ) -> model.BindingInfo:
        """See :meth:`towpath.Client.unbind`."""
        return await self._call(calls.delete_binding(binding, channel=channel, url=url))

    async def binding(
        self, binding: int, *, wait_settled: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> model.BindingInfo:
        """Return one binding; with ``wait_settled`` as soon as the bridge has brought it up or failed to.

        Args:
            timeout: seconds to wait for that; None for ever.

        Raises:
            BindingNotFound, Timeout.
        """
        return await self._call(calls.get_binding(binding, wait_settled=wait_settled), deadline_ns(timeout))

    async def bindings(self, channel: str = "") -> list[model.BindingInfo]:
        """See :meth:`towpath.Client.bindings`."""
        return await self._all_pages(lambda token: calls.bindings(channel, token))

    async def status(self) -> model.Status:
        """See :meth:`towpath.Client.status`."""
        status = await self._call(calls.status())
        return replace(status, channels=tuple(await self.channels()), bindings=tuple(await self.bindings()))

    try_declare = attempt_async(declare)
    try_undeclare = attempt_async(undeclare)
    try_channel_info = attempt_async(channel_info)
    try_channels = attempt_async(channels)
    try_bind = attempt_async(bind)
    try_unbind = attempt_async(unbind)
    try_bindings = attempt_async(bindings)
    try_status = attempt_async(status)
