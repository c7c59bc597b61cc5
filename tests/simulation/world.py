"""A world around the data plane's engine: clients, a disk, crashes, all by one seed.

Theory of operation
    The engine, its machines and a store in memory run on a :class:`VirtualLoop`. Actors publish, consume,
    settle, set values, commit transactions and hand over what came out of rings; each waits for times that
    the seed gives, so that their commands meet rounds and commits at any point. Now and then the disk is
    full, or the core is killed: the engine and all that waits is thrown away, and a new one recovers from
    what the store had committed. Who was not answered asks again, as clients do: a transaction under its id,
    a publication under its message ids.

    :class:`~tests.simulation.oracle.Oracle` and :mod:`~tests.simulation.isolation` check what clients see.
    At the end the disk is mended, everything is drained, and compared with what was promised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext, suppress
from random import Random
from typing import Final
from unittest.mock import patch

from tests.simulation.isolation import Transaction, anomalies
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.virtual import BASE_NS, VirtualLoop
from towpath.errors import StoreFull, TowpathError
from towpath_broker.core.commands import Caller, ChannelOptions, Kind
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data import window
from towpath_broker.core.data.rows import Row, Run
from towpath_broker.core.effects import ChannelOpened
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.data_engine import DataEngine
from towpath_broker.store.contents import unpack
from towpath_broker.store.memory import MemoryStore

ACK_MS: Final = 400
CHANNELS: Final = {
    "jobs": ChannelOptions(
        kind=Kind.QUEUE, durable=True, ack_ms=ACK_MS, max_deliveries=4, dead_letter="dead", capacity=200
    ),
    "fast": ChannelOptions(kind=Kind.QUEUE, ack_ms=ACK_MS, capacity=6),
    "out": ChannelOptions(kind=Kind.QUEUE, durable=True, ack_ms=ACK_MS),
    "dead": ChannelOptions(kind=Kind.QUEUE, durable=True, ack_ms=ACK_MS),
    "one": ChannelOptions(kind=Kind.STATE, durable=True),
    "two": ChannelOptions(kind=Kind.STATE, durable=True),
    "log": ChannelOptions(kind=Kind.TOPIC, durable=True, retain_bytes=0),
}
FINAL: Final = SessionId(1)


class Disk(MemoryStore):
    """A store that can be full, and tell when it has committed something."""

    def __init__(self) -> None:
        super().__init__()
        self.is_full = False
        self.committed = asyncio.Event()

    def commit(self, written: Sequence[Row]) -> None:
        if self.is_full:
            raise StoreFull("the disk is full")
        super().commit(written)
        self.committed.set()


Answer = e.ReplyBody | TowpathError | None
"""What a call was answered; None: the core died before."""


class World:
    """Args: make: makes the engine; a bug may be planted there."""

    def __init__(self, seed: int, make: Callable[..., DataEngine] = DataEngine) -> None:
        self.random = Random(seed)
        # Every other world has next to no memory: most of what its queues hold is in the store alone.
        self.is_small = seed % 2 == 1
        self.loop = VirtualLoop(self.random)
        self.disk = Disk()
        self.oracle = Oracle({name: options.max_deliveries for name, options in CHANNELS.items()})
        self.make = make
        self.engine: DataEngine
        self.counts: dict[str, int] = {}
        self.history: list[Transaction] = []
        self.unknown: set[tuple[str, int]] = set()
        self._task: asyncio.Task[None]
        self._story_task: asyncio.Task[None]
        self._failure: BaseException | None = None
        self._waiting: dict[tuple[SessionId, CallId], asyncio.Future[Answer]] = {}
        self._streams: dict[tuple[SessionId, CallId], Callable[[e.Effect], None]] = {}
        self._next = 10
        self._began = asyncio.Event()
        self._appended_to = 0
        self._jobs: set[asyncio.Task[None]] = set()

    # ---- the core's lives ----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """The core starts."""
        life = self.loop.life

        def emit(effect: e.Effect) -> None:
            if life != self.loop.life:
                return
            try:
                self._emit(effect)
            except Violation as violation:
                self._fail(violation)

        self.engine = self.make(
            limits=Limits(),
            store=self.disk,
            clock=self.loop,
            emit=emit,
            kind_of=lambda name: None,
            first_consumer=(life + 1) << 40,
        )
        opened = [ChannelOpened(name, options, "uid:0", 5) for name, options in CHANNELS.items()]
        await self.engine.recover(opened)
        self._task = self.loop.create_task(self.engine.run())
        self._task.add_done_callback(self._core_ended)
        self._began.set()

    def _core_ended(self, task: asyncio.Task[None]) -> None:
        """A core that ends by itself has a bug."""
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._fail(failure)

    def kill(self) -> None:
        """The core dies, at once: nobody is told of anything any more."""
        self.count("kills")
        self.oracle.died(self.loop.life)
        self.loop.life += 1
        self._began.clear()
        self._task.cancel()
        waiting, self._waiting = self._waiting, {}
        self._streams.clear()
        for future in waiting.values():
            if not future.done():
                future.set_result(None)

    def _fail(self, failure: BaseException) -> None:
        """End the story: the first failure tells the most."""
        if self._failure is None:
            self._failure = failure
            self._story_task.cancel()

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # ---- asking --------------------------------------------------------------------------------------------

    def caller(self, session: SessionId | None = None) -> Caller:
        self._next += 1
        return Caller("uid:7", session=session or SessionId(self._next), call=CallId(self._next))

    async def ask(self, command: c.ClientCommand) -> Answer:
        """Ask, and wait for the answer; None: the core has died."""
        session = command.caller.session
        assert session is not None
        if not self._began.is_set():
            return None
        future: asyncio.Future[Answer] = self.loop.create_future()
        self._waiting[session, command.caller.call] = future
        self.engine.submit(command)
        patience = self.loop.call_later(3.0, self._withdraw, session, command.caller.call)
        try:
            return await future
        finally:
            patience.cancel()

    def _withdraw(self, session: SessionId, call: CallId) -> None:
        """Wait no longer; the answer comes all the same."""
        self.engine.submit(c.CancelCall(session, call))

    def follow(self, command: c.ClientCommand, told: Callable[[e.Effect], None]) -> None:
        """Begin a stream."""
        session = command.caller.session
        assert session is not None
        self._streams[session, command.caller.call] = told
        self.engine.submit(command)

    async def alive(self) -> None:
        """Wait until there is a core."""
        await self._began.wait()

    async def pause(self, mean_s: float) -> None:
        await asyncio.sleep(self.random.expovariate(1 / mean_s))

    def _emit(self, effect: e.Effect) -> None:
        match effect:
            case e.Reply() | e.Refuse():
                key = (effect.session, effect.call)
                future = self._waiting.pop(key, None)
                if future is None or future.done():
                    if key[0] != FINAL and not isinstance(effect, e.Refuse):
                        raise Violation(f"an answer that nobody waits for: {effect}")
                else:
                    future.set_result(effect.body if isinstance(effect, e.Reply) else effect.error)
            case e.ConsumeStarted() | e.Deliver() | e.ValueItem() | e.StreamEnded():
                told = self._streams.get((effect.session, effect.call))
                if told is not None:
                    told(effect)
            case e.Appended():
                self._appended(effect)

    def _appended(self, effect: e.Appended) -> None:
        if effect.count:
            stored = self.disk.read_parcels("log", effect.first_seq, 1)
            if not stored or stored[0].first_seq > effect.first_seq:
                raise Violation(f"log {effect.first_seq} is shown, and is not stored")
            if effect.first_seq < self._appended_to:
                raise Violation(f"log {effect.first_seq} is shown after {self._appended_to - 1}")
            self._appended_to = effect.first_seq + effect.count
        waiting = self._waiting.pop((SessionId(0), CallId(effect.ticket)), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(e.Published("log", effect.first_seq, effect.count))

    # ---- actors --------------------------------------------------------------------------------------------

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Have part of what an actor does go on by itself."""
        task = self.loop.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._job_ended)

    def _job_ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._fail(failure)

    async def publisher(self, queue: str, number: int) -> None:
        """Publish batches; those with message ids again until they are answered."""
        durable = CHANNELS[queue].durable
        for turn in range(12):
            await self.pause(0.15)
            count = self.random.randint(1, 5)
            payloads = [f"{queue}-{number}-{turn}-{index}".encode() for index in range(count)]
            has_ids = durable and self.random.random() < 0.5
            while True:
                await self.alive()
                for payload in payloads:
                    self.oracle.publishing(payload, queue, durable=durable, life=self.loop.life)
                    self.oracle.messages[payload].life = self.loop.life
                    self.oracle.messages[payload].is_gone = False
                command = c.Publish(
                    self.caller(),
                    queue,
                    payloads,
                    message_ids=[payload.decode() for payload in payloads] if has_ids else (),
                    priorities=[self.random.choice((0, 0, 5))] * len(payloads),
                    deliver_at_ns=[self.loop.now_ns() + self.random.randrange(10**9)] * len(payloads)
                    if self.random.random() < 0.2
                    else (),
                )
                answer = await self.ask(command)
                if isinstance(answer, e.Published):
                    for payload in payloads:
                        self.oracle.published(payload)
                    self.count("published")
                elif isinstance(answer, TowpathError):
                    self.count(f"publish: {answer.code.name}")
                    if not has_ids:
                        for payload in payloads:
                            self.oracle.refused(payload)
                if isinstance(answer, e.Published) or not has_ids:
                    break
                await self.pause(0.1)

    async def consumer(self, queue: str) -> None:
        """Consume for a while, then leave, one way or another; again and again."""
        for _ in range(5):
            await self.alive()
            life = self.loop.life
            caller = self.caller()
            worker = Worker(self, queue, caller, life)
            self.follow(c.Consume(caller, queue, self.random.randint(1, 8)), worker.told)
            await self.pause(1.0)
            assert caller.session is not None
            if life == self.loop.life:
                worker.leave(orderly=self.random.random() < 0.5)

    async def setter(self, state: str) -> None:
        """Get a value, and set the next by its version."""
        for _ in range(25):
            await self.pause(0.1)
            await self.alive()
            asked = self.loop.time()
            got = await self.ask(c.GetValue(self.caller(), state))
            if not isinstance(got, e.ValueTold):
                continue
            version = got.value.version
            self.history.append(
                Transaction(f"get-{len(self.history)}", {}, {state: version}, asked, self.loop.time())
            )
            await self.pause(0.01)
            asked = self.loop.time()
            payload = b"%d" % (version + 1)
            answer = await self.ask(c.SetValue(self.caller(), state, payload, if_version=version))
            name = f"set-{len(self.history)}"
            if isinstance(answer, e.ValueSet):
                self.history.append(
                    Transaction(name, {state: answer.version}, {state: version}, asked, self.loop.time())
                )
                self.count("set")
            elif answer is None:
                self.unknown.add((state, version + 1))
            else:
                assert isinstance(answer, TowpathError)
                self.count(f"set: {answer.code.name}")

    async def both_setter(self) -> None:
        """Set two states in one transaction, by the versions that were got before."""
        for turn in range(15):
            await self.pause(0.15)
            await self.alive()
            seen: dict[str, int] = {}
            for state in ("one", "two"):
                got = await self.ask(c.GetValue(self.caller(), state))
                if isinstance(got, e.ValueTold):
                    seen[state] = got.value.version
            if len(seen) < 2:
                continue
            asked = self.loop.time()
            command = c.CommitTransaction(
                self.caller(),
                f"both-{turn}-{self.random.random()}",
                values=[
                    c.SetValue(self.caller(), state, b"%d" % version, if_version=version)
                    for state, version in seen.items()
                ],
            )
            answer = await self.ask(command)
            for state, version in seen.items():
                if answer is None:
                    self.unknown.add((state, version + 1))
            if isinstance(answer, e.Committed):
                made = dict(zip(seen, answer.values, strict=True))
                self.history.append(
                    Transaction(f"both-{len(self.history)}", made, seen, asked, self.loop.time())
                )
                self.count("both")

    async def ring(self, source: int) -> None:
        """Hand over what a publisher has written, in order; sometimes again, or late."""
        written, handed = 60, 0
        while handed < written:
            await self.pause(0.1)
            await self.alive()
            life = self.loop.life
            # As after a crash: go on behind what was taken in.
            handed = max(self.engine.taken("log").get(source, 0), 0)
            if self.random.random() < 0.1 and handed:
                first, last = 1, handed  # an old one comes late, and whole
            else:
                first, last = handed + 1, min(handed + self.random.randint(1, 8), written)
            if first > last:
                break
            payloads = [b"%d:%d" % (source, seq) for seq in range(first, last + 1)]
            origins = [(source, seq) for seq in range(first, last + 1)]
            run = Run(payloads, time_ns=self.loop.now_ns(), origins=origins)
            self._next += 1
            future: asyncio.Future[Answer] = self.loop.create_future()
            self._waiting[SessionId(0), CallId(self._next)] = future
            now_ns = self.loop.now_ns()
            size = sum(map(len, payloads))
            self.engine.submit(
                c.TakeIn("log", self._next, run, len(payloads), size, now_ns, now_ns, {source: (first, last)})
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await future
            if life == self.loop.life and future.done():
                self.count("taken in")

    async def weather(self) -> None:
        """Crashes, and a disk that is full for a while."""
        for _ in range(self.random.randint(2, 6)):
            await self.pause(0.5)
            choice = self.random.random()
            if choice < 0.3:
                self.disk.is_full = True
                await self.pause(0.3)
                self.disk.is_full = False
                self.oracle.full_until_s = self.loop.time() + 1.0
                self.count("full")
            else:
                if choice < 0.7:  # between a commit and the answers
                    self.disk.committed.clear()
                    with suppress(TimeoutError):  # everybody may have gone
                        async with asyncio.timeout(2.0):
                            await self.disk.committed.wait()
                self.kill()
                await self.pause(0.05)
                await self.begin()

    # ---- the story -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through it.

        Raises:
            Violation: a promise was broken.
        """

        def failed(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            failure = context.get("exception")
            self._fail(failure if isinstance(failure, BaseException) else Violation(str(context["message"])))

        self.loop.set_exception_handler(failed)
        asyncio.set_event_loop(self.loop)
        small = patch.multiple(window, RESIDENT_BYTES_MAX=60, LOAD_COUNT_MAX=2)
        try:
            with small if self.is_small else nullcontext():
                self._live()
        finally:
            self._end()

    def _end(self) -> None:
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        asyncio.set_event_loop(None)
        self.loop.close()

    def _live(self) -> None:
        try:
            self._story_task = self.loop.create_task(self._story())
            with suppress(asyncio.CancelledError):
                self.loop.run_until_complete(self._story_task)
        except BaseException as failure:
            raise self._failure or failure from None
        if self._failure is not None:
            raise self._failure

    async def _story(self) -> None:
        await self.begin()
        actors = [
            self.weather(),
            self.both_setter(),
            *(self.publisher("jobs", number) for number in range(2)),
            *(self.publisher("fast", number) for number in range(2)),
            *(self.consumer("jobs") for _ in range(3)),
            *(self.consumer("fast") for _ in range(2)),
            *(self.setter(state) for state in ("one", "two", "one")),
            *(self.ring(source) for source in (101, 102)),
        ]
        async with asyncio.timeout(600), asyncio.TaskGroup() as group:
            for actor in actors:
                group.create_task(actor)
        self.disk.is_full = False
        while self._jobs:
            await asyncio.wait(self._jobs, timeout=5.0)
        queues = [name for name, options in CHANNELS.items() if options.kind is Kind.QUEUE]
        self.oracle.finally_seen({queue: await self._drain(queue) for queue in queues})
        self._check_log()
        found = anomalies(self.history, unknown=frozenset(self.unknown))
        if found:
            raise Violation("; ".join(found))
        self.engine.stop()
        await self._task

    async def _drain(self, queue: str) -> list[bytes]:
        """Take everything out of a queue, once nobody has any of it."""
        payloads: list[bytes] = []
        caller = self.caller(FINAL)

        def told(effect: e.Effect) -> None:
            if isinstance(effect, e.Deliver):
                count = 0
                for piece in effect.pieces:
                    payloads.extend(piece.payloads)
                    count += len(piece.payloads)
                done = c.Range(effect.first_delivery, effect.first_delivery + count - 1)
                self.engine.submit(c.Settle(self.caller(FINAL), effect.consumer, [done]))

        self.follow(c.Consume(caller, queue, 64), told)
        await asyncio.sleep(ACK_MS / 1000 + 5.0)  # what is delayed falls due, what is out comes back
        assert caller.session is not None
        self.engine.submit(c.CancelCall(caller.session, caller.call))
        await asyncio.sleep(1.0)
        held = self.engine.channel_statistics(queue)
        assert held is not None
        if held.messages or held.content_bytes:
            raise Violation(f"{queue} is drained, and still counts {held}")
        return payloads

    def _check_log(self) -> None:
        by_source: dict[int, list[int]] = {}
        expected = 1
        for parcel in self.disk.read_parcels("log", 1, 1 << 30):
            if parcel.first_seq != expected:
                raise Violation(f"log {expected} is missing")
            expected = parcel.first_seq + parcel.count
            run = unpack(parcel.data, parcel.first_seq, "log")
            for source, seq in run.origins:
                by_source.setdefault(source, []).append(seq)
        for source, seqs in by_source.items():
            if seqs != list(range(1, 61)):
                raise Violation(f"of source {source} the log has {seqs}")


class Worker:
    """One consumer, and what it does with what it gets."""

    def __init__(self, world: World, queue: str, caller: Caller, life: int) -> None:
        self.world = world
        self.queue = queue
        self.caller = caller
        self.life = life
        self.consumer = 0
        self.held: dict[int, bytes] = {}
        self.has_left = False

    @property
    def is_over(self) -> bool:
        return self.has_left or self.life != self.world.loop.life

    def told(self, effect: e.Effect) -> None:
        world = self.world
        if isinstance(effect, e.ConsumeStarted):
            self.consumer = effect.body.consumer
        if not isinstance(effect, e.Deliver):
            return
        if self.is_over:  # it crossed with our leaving: the core counts it, and so must we
            for piece in effect.pieces:
                for payload in piece.payloads:
                    world.oracle.crossed(payload, effect.consumer, piece.attempt, self.life)
            return
        now_s = world.loop.time()
        delivery = effect.first_delivery
        for piece in effect.pieces:
            for payload in piece.payloads:
                # The engine counts from the round's time, which may lie a little before this moment.
                until_s = now_s + ACK_MS / 1000 - 0.1
                world.oracle.delivered(
                    payload, self.queue, effect.consumer, piece.attempt, now_s, until_s, self.life
                )
                self.held[delivery] = payload
                world.start(self.work(delivery, payload))
                delivery += 1
        world.count("delivered")

    def leave(self, *, orderly: bool) -> None:
        """Go; what it has goes back."""
        self.has_left = True
        assert self.caller.session is not None
        for payload in self.held.values():
            holder = self.world.oracle.messages[payload].holder
            if holder is not None and holder.consumer == self.consumer:
                holder.is_released, holder.was_orderly = True, orderly
        self.world.engine.submit(
            c.CancelCall(self.caller.session, self.caller.call)
            if orderly
            else c.EndSession(self.caller.session)
        )

    async def work(self, delivery: int, payload: bytes) -> None:
        world = self.world
        await world.pause(0.05)
        choice = world.random.random()
        if choice < 0.12:
            await asyncio.sleep(ACK_MS / 1000 + world.random.choice((0.05, 2.5)))  # too late
        if self.is_over:
            return
        if self.queue == "jobs" and 0.4 < choice < 0.7:
            await self.transform(delivery, payload)
        elif choice < 0.75:
            await self.acknowledge(delivery, payload)
        elif choice < 0.9:
            await self.give_back(delivery, payload)
        # else it is forgotten, and its deadline passes

    def deadline_s(self, payload: bytes) -> float:
        holder = self.world.oracle.messages[payload].holder
        return holder.until_s if holder is not None and holder.consumer == self.consumer else 0.0

    async def acknowledge(self, delivery: int, payload: bytes) -> None:
        oracle, loop = self.world.oracle, self.world.loop
        deadline_s, asked_s = self.deadline_s(payload), loop.time()
        oracle.settling(payload)
        answer = await self.world.ask(
            c.Settle(self.world.caller(self.caller.session), self.consumer, [c.Range(delivery, delivery)])
        )
        if isinstance(answer, e.Settled):
            if answer.lost:
                oracle.not_settled(payload)
            else:
                oracle.settled(payload, asked_s, deadline_s)
                self.world.count("settled")
            self.held.pop(delivery, None)
        elif isinstance(answer, TowpathError):
            oracle.not_settled(payload)

    async def give_back(self, delivery: int, payload: bytes) -> None:
        holder = self.world.oracle.messages[payload].holder
        if holder is not None and holder.consumer == self.consumer:
            holder.is_released = True
        delay_ms = self.world.random.choice((0, 0, 300))
        rejected = self.world.random.random() < 0.2
        returned = c.Returned(c.Range(delivery, delivery), delay_ms, rejected, "no")
        if rejected and not CHANNELS[self.queue].dead_letter:
            self.world.oracle.messages[payload].is_gone = True
        await self.world.ask(
            c.Settle(self.world.caller(self.caller.session), self.consumer, returned=[returned])
        )
        self.world.count("given back")

    async def transform(self, delivery: int, payload: bytes) -> None:
        """Consume, transform, publish: exactly once."""
        world, oracle = self.world, self.world.oracle
        result = b"out-" + payload
        transaction = f"{payload.decode()}-{world.random.random()}"
        oracle.settling(payload)
        while True:
            life = world.loop.life
            oracle.publishing(result, "out", durable=True, life=life)
            caller = world.caller(self.caller.session)
            asked_s, deadline_s = world.loop.time(), self.deadline_s(payload)
            answer = await world.ask(
                c.CommitTransaction(
                    caller,
                    transaction,
                    publishes=[c.Publish(caller, "out", [result])],
                    settlements=[c.Settle(caller, self.consumer, [c.Range(delivery, delivery)])],
                )
            )
            if isinstance(answer, e.Committed):
                if not answer.is_repeated:
                    oracle.settled(payload, asked_s, deadline_s)
                else:
                    oracle.messages[payload].is_settled = True
                oracle.published(result)
                world.count("transformed")
                return
            if answer is not None:
                world.count(f"transform: {answer.code.name}" if isinstance(answer, TowpathError) else "?")
                # It is known that nothing happened; the job goes to somebody else.
                oracle.not_settled(payload)
                oracle.refused(result)
                return
            # Nobody knows: ask again, under the same id.
            await world.alive()


__all__ = ["BASE_NS", "World"]
