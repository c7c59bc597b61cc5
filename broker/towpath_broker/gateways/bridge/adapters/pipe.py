"""``pipe:COMMAND``: a command on anonymous pipes.

Theory of operation
    ``in`` carries its standard output into the channel, ``out`` the channel into its standard input, ``both``
    does both. The command is run without a shell; ``sh -c '...'`` brings one. One binding is one command at a
    time: when it ends, all that it wrote is carried first, then its end is told, and the policy says what
    follows:

    ============== ================================== ======================================
    ``restart``    it exited with 0                   anything else
    ============== ================================== ======================================
    ``always``     again, after the delay             again, after the delay
    ``on-failure`` left so: ``stopped``               again, after the delay
    ``never``      left so: ``stopped``               left so: ``stopped``, with the error
    ============== ================================== ======================================

    The delay is ``restart_delay_ms`` and doubles up to 30 s; after a run of a minute or more it begins anew.
    Input that a run left unread goes to the next one; while none runs, messages are held and the oldest
    dropped, as ``outflow`` describes.

What users should know
    *The binding's life is the command's own.* Processes that it started and left in its group are ended with
    it: SIGTERM, and SIGKILL after ``stop_timeout_ms``.
    *An unfinished last line* is a line: the command has ended, nobody will complete it. A netstring that is
    malformed ends the run, which then counts as failed.
    *To stop*: a command that only writes gets SIGTERM, its group too, and SIGKILL after ``stop_timeout_ms``.
    One that reads first gets what is held, then the end of its input, and SIGTERM and SIGKILL only if it has
    not ended after half of that time each. What it writes until then is carried; what it did not read counts
    as refused.
    *Buffering*: many programs write in blocks of 4096 bytes and more when they write to a pipe. ``stdbuf
    -oL`` helps.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Sequence
from typing import Any

from towpath.bindings import PipeOptions, Restart, WhenAbsent
from towpath.errors import BindingFailed, TowpathError
from towpath.model import Direction
from towpath_broker.gateways.bridge.backoff import Backoff, format_delay
from towpath_broker.gateways.bridge.command import Command, describe_exit
from towpath_broker.gateways.bridge.inflow import Ended, Inflow
from towpath_broker.gateways.bridge.outflow import Outflow
from towpath_broker.gateways.bridge.ports import Carrier
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel, raise_first_error, together
from towpath_broker.log import log


class PipeAdapter:
    """One command, run again and again as its policy says.

    Args:
        argv: the command and its arguments.
        direction: ``in``, ``out`` or ``both``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        channel: the channel's name, for the log.
    """

    def __init__(
        self,
        argv: Sequence[str],
        direction: Direction,
        options: PipeOptions,
        carrier: Carrier,
        tally: Tally,
        *,
        channel: str,
    ) -> None:
        self._argv = argv
        self._options = options
        self._tally = tally
        self._channel = channel
        self._is_fed = asyncio.Event()  # all that is to go to the command has gone
        self._inflow: Inflow | None = None
        if direction != "out":
            self._inflow = Inflow(options.framing, Publishing(carrier, tally), tally)
        self._outflow: Outflow | None = None
        if direction != "in":
            self._outflow = Outflow(
                options.framing,
                carrier,
                tally,
                when_absent=WhenAbsent.DROP,
                # Nothing to find out: a command that has closed its standard input does not open it again.
                look=lambda: None,
            )

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the command cannot be started.
            TowpathError: the channel takes or gives no more.
        """
        if self._outflow is None:
            await self._run_again_and_again(stop)
            return
        # The end of the subscription ends the command as a stop does, and is raised then.
        ending, ended = stop.child(), Stop()
        feeding = asyncio.create_task(self._feed(self._outflow, ending, ended))
        try:
            await self._run_again_and_again(ending)
            ended.set()
            await asyncio.wait((feeding,))
        finally:
            await cancel(feeding)
        raise_first_error(feeding)

    async def _feed(self, outflow: Outflow, ending: Stop, ended: Stop) -> None:
        try:
            await outflow.run(ending, ended)
        finally:
            self._is_fed.set()
            ending.set()

    async def _run_again_and_again(self, stop: Stop) -> None:
        """Start the command until it is to be left so, or to stop."""
        backoff = Backoff(self._options.restart_delay_ms)
        loop = asyncio.get_running_loop()
        while not stop.is_set:
            began_s = loop.time()
            status, broken = await self._run_once(stop)
            if stop.is_set:
                break
            is_failure = status != 0 or broken is not None
            what = describe_exit(status)
            error = broken or (BindingFailed(f"{self._argv[0]} {what}") if is_failure else None)
            policy = self._options.restart
            if policy is Restart.NEVER or (policy is Restart.ON_FAILURE and not is_failure):
                log("bridge.command_ended", channel=self._channel, end=what)
                self._tally.set_state("stopped", what, error)
                break
            delay_ms = backoff.next_delay_ms(loop.time() - began_s)
            log("bridge.command_ended", channel=self._channel, end=what, again_in_ms=delay_ms)
            self._tally.set_state("retrying", f"{what}, again in {format_delay(delay_ms)}", error)
            if await stop.sleep(delay_ms / 1000):
                self._tally.count_restart()

    async def _run_once(self, stop: Stop) -> tuple[int, BindingFailed | None]:
        """Run the command from its start to its end, and carry all that it wrote.

        Returns:
            Its exit status, and the error when it was ended because its output could not be followed.
        """
        command = Command(
            self._argv,
            channel=self._channel,
            reads=self._outflow is not None,
            writes=self._inflow is not None,
        )
        run = _Run(command, stop)
        try:
            log("bridge.command_started", channel=self._channel, pid=command.pid)
            self._tally.set_state("running", f"pid {command.pid}")
            if self._outflow is not None:
                self._outflow.attach(command.stdin)
            await together(self._drain(run), self._see_to_end(run, stop))
            if run.failure is not None:
                raise run.failure
            return command.reap(), run.broken
        finally:
            if self._outflow is not None:
                self._outflow.detach()
                if stop.is_set:
                    self._outflow.settle(command.unread_input_bytes())
            command.destroy()

    async def _drain(self, run: _Run) -> None:
        """Carry what the command writes, until nobody is left who could write."""
        await together(self._read(run), run.command.log_stderr(run.is_quiet))
        run.is_drained.set()

    async def _read(self, run: _Run) -> None:
        if self._inflow is None:
            return
        try:
            ended = await self._inflow.carry(run.command.stdout, run.is_quiet)
            if ended is Ended.STOPPED:
                ended = await self._inflow.carry_rest(run.command.stdout)
            if ended is Ended.BROKEN:
                run.broken = self._inflow.broken()
            await self._inflow.finish(is_whole=True)
        except TowpathError as error:
            run.failure = error
        if run.broken or run.failure:
            run.ending.set()

    async def _see_to_end(self, run: _Run, stop: Stop) -> None:
        """Wait for the command's end, or bring it about; then for the end of what it started."""
        command = run.command
        timeout_s = self._options.stop_timeout_ms / 1000
        if not await command.wait_exited(run.ending):
            await self._bring_about_end(command, stop, timeout_s if self._outflow is None else timeout_s / 2)
        command.signal_group(signal.SIGTERM)
        if not await _wait_at_most(timeout_s, run.is_drained.wait()):
            command.signal_group(signal.SIGKILL)
        run.is_quiet.set()

    async def _bring_about_end(self, command: Command, stop: Stop, patience_s: float) -> None:
        """End the command: by the end of its input if it has one, by SIGTERM, by SIGKILL."""
        if self._outflow is not None:
            if stop.is_set:
                await _wait_at_most(patience_s, self._is_fed.wait())
            self._outflow.detach()
            command.close_stdin()
            if await _wait_at_most(patience_s, command.wait_exited(Stop())):
                return
        command.signal_group(signal.SIGTERM)
        if not await _wait_at_most(patience_s, command.wait_exited(Stop())):
            log("bridge.command_killed", level="warning", channel=self._channel, pid=command.pid)
            command.signal_group(signal.SIGKILL)
            await command.wait_exited(Stop())


class _Run:
    """One run of the command.

    Attributes:
        ending: it is to be ended: asked from outside, or its output is broken.
        is_quiet: nobody is left who could write; what is in its pipes is all.
        is_drained: all that it wrote has been carried.
        broken: why its output could not be followed.
        failure: why the channel took no more of it.
    """

    def __init__(self, command: Command, stop: Stop) -> None:
        self.command = command
        self.ending = stop.child()
        self.is_quiet = Stop()
        self.is_drained = asyncio.Event()
        self.broken: BindingFailed | None = None
        self.failure: TowpathError | None = None


async def _wait_at_most(timeout_s: float, condition: Coroutine[Any, Any, object]) -> bool:
    """Await a condition; False when the time was not enough."""
    try:
        async with asyncio.timeout(timeout_s):
            await condition
    except TimeoutError:
        return False
    return True
