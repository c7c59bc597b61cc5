"""UNIX sockets when something goes wrong: peers that die, are slow, are too many or send what cannot be; and
the bridge itself, stopped and started again."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import socket
import struct
from pathlib import Path

import pytest

from tests.bridge import foreign
from tests.bridge.bad_input import without_privileges
from tests.bridge.rig import Rig, on_loop, open_descriptors, within
from tests.bridge.test_keeping import Keeper
from tests.bridge.test_unix import CONNECTIONS, exists, numbers
from tests.bridge.unix_rig import (
    TYPES,
    accept,
    connected,
    foreign_ready,
    hung_up,
    listening,
    raw,
    receive,
    receive_bytes,
    send,
    start,
)
from towpath.errors import (
    BadFrame,
    BindingFailed,
    ChannelUndeclared,
    FrameTooLarge,
    LimitExceeded,
    PermissionDenied,
    SlowConsumer,
)
from towpath_broker.gateways.bridge.adapters import unix

TIMES = 100
BLOCKS = [b"%06d " % number + b"x" * 1017 for number in range(4_000)]
"""More than sockets and backlogs hold."""


# -- frames and packets --------------------------------------------------------------------------------------


@on_loop
async def test_a_peer_that_dies_inside_a_frame_spoils_nothing(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in")
        await rig.until_state("running")
        with connected(place) as one, connected(place) as two:
            await send(one, b"whole\nhal")
            await send(two, b"first ")
            await rig.until_published(1)
            one.close()
            await rig.until(lambda: rig.tally.refused == 1)
            assert isinstance(rig.tally.last_error, BadFrame)
            assert "3 bytes after it began" in rig.tally.last_error.message
            await send(two, b"and last\n")
            assert await rig.until_published(2) == [b"whole", b"first and last"]
        await rig.stop()
        assert rig.tally.refused == 1


@on_loop
async def test_a_stream_that_cannot_be_followed_ends_that_connection_only(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in", framing="netstring")
        await rig.until_state("running")
        with connected(place) as good, connected(place) as bad:
            await send(bad, b"4:good,bad")
            await hung_up(bad)
            assert isinstance(rig.tally.last_error, BindingFailed)
            assert "the stream was closed" in rig.tally.last_error.message
            await send(good, b"5:right,")
            assert await rig.until_published(2) == [b"good", b"right"]
        await rig.stop()
        assert rig.tally.refused == 1


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "dgram"])
@on_loop
async def test_what_is_too_long_is_counted_and_the_next_one_carried(place: Path, kind: str) -> None:
    limit = "frame_bytes_max" if kind == "stream" else "packet_bytes_max"
    async with Rig() as rig:
        start(rig, place, "in", socket=kind, **{limit: "10"})
        await rig.until_state("running")
        with connected(place, kind) as end:
            for payload in (b"before", b"x" * 30_000, b"after"):
                await send(end, payload + (b"\n" if kind == "stream" else b""))
            assert await rig.until_published(2) == [b"before", b"after"]
        await rig.stop()
        assert rig.tally.refused == 1 and isinstance(rig.tally.last_error, FrameTooLarge)
        assert "30000 bytes; 10 are allowed" in rig.tally.last_error.message


@on_loop
async def test_a_message_too_long_for_a_packet_is_counted(place: Path) -> None:
    async with Rig() as rig:
        start(
            rig, place, "out", socket="seqpacket", packet_bytes_max=str(1 << 20), backlog_bytes=str(4 << 20)
        )
        await rig.until_state("waiting")
        with connected(place, "seqpacket") as end:
            # The first is more than the option says, the second more than the kernel takes.
            rig.carrier.send([b"x" * (1 << 21), b"x" * (1 << 20), b"after"])
            assert await receive(end) == b"after"
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (1, 2)
        assert rig.tally.last_error is not None and "wmem_max" in rig.tally.last_error.hint


@on_loop
async def test_descriptors_that_are_sent_along_are_not_kept(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in", socket="dgram")
        await rig.until_state("running")
        with connected(place, "dgram") as end:
            before = open_descriptors()
            for number in range(1, 21):
                socket.send_fds(end, [b"text"], [0, 1, 2])
                await rig.until_published(number)
            assert open_descriptors() == before
        await rig.stop()


@on_loop
async def test_what_is_sent_to_an_outgoing_binding_is_told_and_thrown_away(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out")
        await rig.until_state("waiting")
        with connected(place) as end:
            await send(end, b"is anybody there\n")
            await rig.until(lambda: rig.tally.refused == 1)
            assert rig.tally.last_error is not None and "out only" in rig.tally.last_error.message
            rig.carrier.send([b"yes"])
            assert await receive(end) == b"yes\n"
        await rig.until_state("waiting")
        await rig.stop()
        assert rig.carrier.published == []


# -- peers that die ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONNECTIONS)
@on_loop
async def test_sender_is_killed_a_hundred_times(place: Path, kind: str) -> None:
    async with Rig() as rig:
        start(rig, place, "in", socket=kind)
        await rig.until_state("running")
        for _ in range(TIMES):
            before = len(rig.carrier.published)
            sender = await foreign.start("unix_peer", kind, "connect", "send", str(place), "1000000", "16")
            await rig.until_published(before + 20)
            sender.kill()
            await sender.wait()
        await rig.until(lambda: "0 peers" in rig.tally.detail)
        await rig.stop()
        # Of each what it had sent, whole and in order; at most a frame of each was cut short, and counted.
        of_peer: dict[str, list[int]] = {}
        for payload, headers in zip(rig.carrier.published, rig.carrier.published_headers, strict=True):
            assert headers is not None and len(payload) == 16
            of_peer.setdefault(headers.user["unix-peer"], []).append(int(payload.split()[0]))
        assert len(of_peer) == TIMES
        assert all(got == list(range(len(got))) for got in of_peer.values())
        assert rig.tally.refused <= (TIMES if kind == "stream" else 0)


@pytest.mark.parametrize("kind", CONNECTIONS)
@on_loop
async def test_receiver_is_killed_a_hundred_times(place: Path, kind: str) -> None:
    """What it had not read goes with it, and that is told; what was unsent goes to the next one, in order."""
    async with Rig() as rig:
        start(rig, place, "out", socket=kind, when_absent="block")
        await rig.until_state("waiting")
        sent, last = 0, -1
        for _ in range(TIMES):
            if len(rig.carrier.waiting) < 3_000:  # its standard output is told after some hundred lines
                rig.carrier.send([b"%d ." % number for number in range(sent, sent + 3_000)])
                sent += 3_000
            receiver = await foreign.start(
                "unix_peer", kind, "connect", "receive", str(place), "1000000", reads=True
            )
            assert receiver.stdout is not None
            await within(receiver.stdout.readline())
            receiver.kill()
            rest = await within(receiver.stdout.read())
            await receiver.wait()
            await rig.until_state("waiting")
            seen = numbers(rest[: rest.rfind(b"\n") + 1])
            assert seen == list(range(seen[0], seen[0] + len(seen))) and seen[0] > last
            last = seen[-1]
        assert rig.tally.last_error is not None and "without having read all" in rig.tally.last_error.message
        await rig.stop()


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "dgram"])
@on_loop
async def test_a_server_is_restarted_a_hundred_times_and_what_it_read_misses_nothing(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that reads all it was sent before it goes loses nothing."""
    monkeypatch.setattr(unix, "REDIAL_MS", 1)
    monkeypatch.setattr(unix, "REDIAL_HEALTHY_S", 0.0)
    got = []
    async with Rig() as rig:
        start(rig, place, "out", socket=kind, role="connect")
        for time in range(TIMES):
            if kind != "dgram" or time == 0:  # that a dgram socket has gone shows when something is sent
                await rig.until_state("waiting")
            rig.carrier.send([b"%d" % time])
            await rig.until_state("waiting")
            with listening(place, kind) as server:
                end = server if kind == "dgram" else await accept(server)
                got.append((await receive(end)).rstrip())
                end.close()
            os.unlink(place)
        assert rig.tally.restarts == TIMES - 1
        await rig.stop()
    assert got == [b"%d" % time for time in range(TIMES)]


@on_loop
async def test_nobody_is_there_at_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "REDIAL_MS_MAX", 20)
    async with Rig() as rig:
        start(rig, place, "in", role="connect")
        await rig.until(lambda: rig.tally.detail == f"{place} is not there")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(raw(place))
            await rig.until(lambda: rig.tally.detail == f"nobody listens on {place}")
            server.listen()
            server.setblocking(False)
            end = await accept(server)
            await rig.until(lambda: rig.tally.detail == f"connected (pid {os.getpid()})")
            await send(end, b"text\n")
            await rig.until_published(1)
            end.close()
            await rig.until(lambda: rig.tally.detail == f"{place} has closed the connection")
        await rig.stop()


@on_loop
async def test_a_message_that_was_sent_in_part_comes_again_whole(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out", frame_bytes_max=str(1 << 20))
        await rig.until_state("waiting")
        with connected(place) as first:
            rig.carrier.send([b"one", b"x" * 1_000_000])
            assert await receive_bytes(first, 1000)
        await rig.until_state("waiting")
        with connected(place) as second:
            assert await receive_bytes(second, 1_000_001) == b"x" * 1_000_000 + b"\n"
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (2, 0)


# -- peers that are slow, or not there -----------------------------------------------------------------------


@on_loop
async def test_a_slow_peer_is_a_slow_subscriber(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out", backlog_bytes="65536")
        await rig.until_state("waiting")
        with connected(place) as quick, connected(place) as slow:
            await rig.until(lambda: "2 peers" in rig.tally.detail)
            rig.carrier.send(BLOCKS)
            some = await receive_bytes(quick, 100_000)
            # Nothing more is taken from the channel than what sockets and backlogs hold.
            assert len(rig.carrier.waiting) > len(BLOCKS) // 2
            whole = b"".join(block + b"\n" for block in BLOCKS)
            rest, all_of_it = await asyncio.gather(
                receive_bytes(quick, len(whole) - len(some)), receive_bytes(slow, len(whole))
            )
            assert some + rest == whole and all_of_it == whole
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (len(BLOCKS), 0)


@on_loop
async def test_a_slow_peer_s_oldest_messages_are_dropped_and_counted(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out", backlog_bytes="65536", when_slow="drop")
        await rig.until_state("waiting")
        with connected(place) as quick, connected(place) as slow:
            await rig.until(lambda: "2 peers" in rig.tally.detail)
            got = b""
            for first in range(0, len(BLOCKS), 50):  # as fast as the quick one takes it
                part = BLOCKS[first : first + 50]
                rig.carrier.send(part)
                got += await receive_bytes(quick, sum(len(block) + 1 for block in part))
            assert numbers(got) == list(range(len(BLOCKS)))
            assert isinstance(rig.tally.last_error, SlowConsumer)
            left = numbers(await receive_bytes(slow, 1025 * (len(BLOCKS) - rig.tally.refused)))
            # Whole messages, in order, the newest among them; as many are missing as were counted.
            assert left == sorted(set(left)) and left[-1] == len(BLOCKS) - 1
            assert len(left) + rig.tally.refused == len(BLOCKS)
        await rig.stop()


@on_loop
async def test_a_slow_peer_is_disconnected_and_the_others_go_on(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out", backlog_bytes="65536", when_slow="disconnect")
        await rig.until_state("waiting")
        with connected(place) as quick, connected(place) as slow:
            await rig.until(lambda: "2 peers" in rig.tally.detail)
            got = b""
            for first in range(0, len(BLOCKS), 50):
                part = BLOCKS[first : first + 50]
                rig.carrier.send(part)
                got += await receive_bytes(quick, sum(len(block) + 1 for block in part))
            assert numbers(got) == list(range(len(BLOCKS)))
            await hung_up(slow)
            assert "1 peer" in rig.tally.detail and rig.tally.refused > 0
            assert isinstance(rig.tally.last_error, SlowConsumer)
            assert "was disconnected" in rig.tally.last_error.message
        await rig.stop()


@on_loop
async def test_while_nobody_is_connected_the_oldest_are_dropped_and_counted(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out", socket="seqpacket", backlog_bytes="65536")
        await rig.until_state("waiting")
        for block in BLOCKS[:1000]:
            rig.carrier.send([block])
            await rig.until(lambda: not rig.carrier.waiting)
        await rig.until(lambda: rig.tally.refused > 0)
        refused = rig.tally.refused
        with connected(place, "seqpacket") as end:
            got = [int((await receive(end)).split()[0]) for _ in range(1000 - refused)]
        assert got == list(range(refused, 1000))
        assert rig.tally.last_error is not None and "nobody is connected" in rig.tally.last_error.message
        await rig.stop()


@on_loop
async def test_while_nobody_is_connected_when_absent_block_takes_no_more(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "out", backlog_bytes="65536", when_absent="block")
        await rig.until_state("waiting")
        rig.carrier.send(BLOCKS)
        await rig.settle()
        assert len(rig.carrier.waiting) > len(BLOCKS) // 2
        whole = b"".join(block + b"\n" for block in BLOCKS)
        with connected(place) as end:
            assert await receive_bytes(end, len(whole)) == whole
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_a_full_dgram_socket_makes_the_channel_wait(place: Path) -> None:
    payloads = [b"%d" % number for number in range(1000)]
    async with Rig() as rig:
        with listening(place, "dgram") as server:
            start(rig, place, "out", socket="dgram", role="connect")
            await rig.until_state("running")
            rig.carrier.send(payloads)
            await rig.until(lambda: rig.tally.messages_out > 0)
            assert [await receive(server) for _ in payloads] == payloads
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_the_sender_waits_while_the_publisher_does(place: Path) -> None:
    whole = b"".join(block + b"\n" for block in BLOCKS)
    async with Rig() as rig:
        rig.carrier.open.clear()
        start(rig, place, "in")
        await rig.until_state("running")
        with connected(place) as one, connected(place) as two:
            sending = [asyncio.create_task(send(end, whole)) for end in (one, two)]
            await rig.until(lambda: rig.carrier.has_waiting_publisher)
            await rig.settle()
            assert not any(task.done() for task in sending) and rig.carrier.published == []
            rig.carrier.open.set()
            assert len(await rig.until_published(2 * len(BLOCKS))) == 2 * len(BLOCKS)
            await asyncio.gather(*sending)
        await rig.stop()
        assert rig.tally.refused == 0


# -- too many ------------------------------------------------------------------------------------------------


@on_loop
async def test_one_more_than_peers_max_is_turned_away(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in", peers_max="2")
        await rig.until_state("running")
        with connected(place) as one, connected(place), connected(place) as third:
            await hung_up(third)
            assert isinstance(rig.tally.last_error, LimitExceeded)
            assert "peers_max" in rig.tally.last_error.hint
            one.close()
            await rig.until(lambda: "1 peer" in rig.tally.detail)
            with connected(place) as fourth:
                await send(fourth, b"text\n")
                await rig.until_published(1)
        await rig.stop()


@on_loop
async def test_without_a_descriptor_left_who_comes_waits(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix, "ACCEPT_PAUSE_S", 0.05)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Rig() as rig:
        start(rig, place, "in")
        await rig.until_state("running")
        with connected(place) as end:
            await rig.until(lambda: "1 peer" in rig.tally.detail)
            with connected(place) as late:
                await rig.until(lambda: "2 peers" in rig.tally.detail)
                held = [socket.socket(socket.AF_UNIX)]
                resource.setrlimit(resource.RLIMIT_NOFILE, (held[0].fileno() + 1, hard))
                try:
                    held[0].connect(raw(place))
                    await rig.until(lambda: isinstance(rig.tally.last_error, LimitExceeded))
                    assert rig.tally.last_error is not None and "ulimit -n" in rig.tally.last_error.hint
                    await send(late, b"others go on\n")
                    await rig.until_published(1)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await rig.until(lambda: "3 peers" in rig.tally.detail)
                held[0].close()
            await send(end, b"text\n")
            await rig.until_published(2)
        await rig.stop()


@pytest.mark.parametrize("kind", TYPES)
@on_loop
async def test_an_abstract_name_admits_whom_its_mode_does(kind: str) -> None:
    """As root: by another user; otherwise all that can be tried is that the own user comes in."""
    for mode, is_admitted in (("0600", os.geteuid() != 0), ("0602", True)):
        name = f"@towpath-test-{os.getpid()}-{os.urandom(4).hex()}"
        async with Rig() as rig:
            start(rig, name, "in", socket=kind, mode=mode)
            await rig.until_state("running")
            with without_privileges():
                end = connected(name, kind)
                if kind == "dgram" or is_admitted:
                    await send(end, b"text\n")
            if is_admitted:
                await rig.until_published(1)
            else:
                await rig.until(lambda: isinstance(rig.tally.last_error, PermissionDenied))
            end.close()
            await rig.stop()
            assert len(rig.carrier.published) == int(is_admitted)


# -- the channel ---------------------------------------------------------------------------------------------


@on_loop
async def test_the_end_of_the_subscription_ends_the_adapter(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "both")
        await rig.until_state("waiting")
        with connected(place) as end:
            await rig.until_state("running")
            rig.carrier.fail(ChannelUndeclared("test is gone"))
            with pytest.raises(ChannelUndeclared):
                await rig.ended()
            await hung_up(end)
        assert not exists(place)


@on_loop
async def test_what_was_read_when_the_channel_went_is_counted(place: Path) -> None:
    async with Rig() as rig:
        rig.carrier.publish_error = ChannelUndeclared("test is gone")
        start(rig, place, "in")
        await rig.until_state("running")
        with connected(place) as end:
            await send(end, b"one\ntwo\n")
            with pytest.raises(ChannelUndeclared):
                await rig.ended()
        assert (rig.tally.messages_in, rig.tally.refused) == (0, 2)


@on_loop
async def test_a_queue_s_message_that_its_peer_did_not_take_goes_to_another(place: Path) -> None:
    """What lies in a socket is its peer's; what is behind it is not."""
    async with Rig() as rig:
        rig.carrier.is_settled = True
        start(rig, place, "out", socket="seqpacket")
        await rig.until_state("waiting")
        with connected(place, "seqpacket"):
            await rig.until_state("running")
            rig.carrier.send(BLOCKS)
            await rig.until(lambda: len(rig.carrier.settled) > 10)
            await rig.settle()
        await rig.until_state("waiting")
        handed_over = len(rig.carrier.settled)
        assert handed_over < len(BLOCKS) // 2
        with connected(place, "seqpacket") as second:
            got = [await receive(second) for _ in range(len(BLOCKS) - handed_over)]
        await rig.until(lambda: len(rig.carrier.settled) == len(BLOCKS))
        assert sorted(rig.carrier.settled) == BLOCKS and got == BLOCKS[handed_over:]
        await rig.stop()
        assert rig.tally.refused == 0


# -- the bridge, stopped and started again -------------------------------------------------------------------


def test_adapter_is_restarted_a_hundred_times_under_load(place: Path) -> None:
    """Its socket stays, with what is in it: a sender of datagrams notices nothing, and nothing is missing."""
    keeper = Keeper()
    published: list[bytes] = []

    @on_loop
    async def run() -> None:
        sender = None
        for _ in range(TIMES):
            with keeper.bridge() as keeping:
                async with Rig(keeping.of(7)) as rig:
                    start(rig, place, "in", socket="dgram")
                    await rig.until_state("running")
                    sender = sender or await foreign.start(
                        "unix_peer", "dgram", "connect", "send", str(place), "1000000", "16"
                    )
                    await rig.until_published(50)
                    await rig.stop()
                    published.extend(rig.carrier.published)
        assert sender is not None and sender.returncode is None
        sender.kill()
        await sender.wait()

    run()
    assert [int(payload.split()[0]) for payload in published] == list(range(len(published)))
    assert sorted(keeper.kept) == ["7 unix file", "7 unix socket"]
    keeper.close()


@pytest.mark.parametrize("is_killed", [False, True])
def test_who_connects_while_the_bridge_is_away_waits(place: Path, is_killed: bool) -> None:
    keeper = Keeper()

    @on_loop
    async def before() -> None:
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                start(rig, place, "in", mode="0640")
                await rig.until_state("running")
                if not is_killed:
                    await rig.stop()

    @on_loop
    async def after() -> None:
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                start(rig, place, "in", mode="0640")
                assert await rig.until_published(1) == [b"patience"]
                rig.keeping.is_over = True  # unbound
                await rig.stop()

    before()
    inode = os.lstat(place).st_ino
    with connected(place) as end:
        end.send(b"patience\n")
        assert os.lstat(place).st_ino == inode
        after()
    assert keeper.kept == {} and not exists(place)


def test_a_socket_that_was_kept_and_is_not_this_binding_s_is_let_go(place: Path) -> None:
    """Its file was removed meanwhile, and another one is there."""
    keeper = Keeper()

    @on_loop
    async def once(options: dict[str, str]) -> None:
        with keeper.bridge() as keeping:
            async with Rig(keeping.of(7)) as rig:
                start(rig, place, "in", **options)
                await rig.until_state("running")
                with connected(place, options.get("socket", "stream")) as end:
                    end.send(b"text\n")
                    await rig.until_published(1)
                await rig.stop()

    once({})
    os.unlink(place)
    once({})
    os.unlink(place)
    listening(place, "dgram").close()
    once({"socket": "seqpacket"})
    keeper.close()


# -- places that cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "direction"), [("listen", "in"), ("connect", "out")])
@on_loop
async def test_what_is_no_socket_is_refused_and_left_alone(place: Path, role: str, direction: str) -> None:
    precious = os.open(place, os.O_CREAT | os.O_RDWR)
    os.write(precious, b"precious")
    async with Rig() as rig:
        start(rig, place, direction, role=role)  # type: ignore[arg-type]
        with pytest.raises(BindingFailed, match="is not a socket") as caught:
            await rig.ended()
        assert not caught.value.retryable
    assert os.pread(precious, 100, 0) == b"precious" and exists(place)
    os.close(precious)


@pytest.mark.parametrize(
    ("theirs", "ours"), [pair for pair in itertools.product(TYPES, TYPES) if pair[0] != pair[1]]
)
@on_loop
async def test_a_socket_of_another_type_is_told(place: Path, theirs: str, ours: str) -> None:
    with listening(place, theirs):
        async with Rig() as rig:
            start(rig, place, "out", role="connect", socket=ours)
            with pytest.raises(BindingFailed, match=f"another type than {ours}") as caught:
                await rig.ended()
            assert not caught.value.retryable and f"socket={theirs}" in caught.value.hint


@pytest.mark.parametrize("kind", ["stream", "seqpacket", "dgram"])
@on_loop
async def test_a_socket_that_somebody_has_is_not_taken(place: Path, kind: str) -> None:
    for name in (str(place), f"@towpath-test-{struct.pack('I', os.getpid()).hex()}"):
        with listening(name, kind):
            for ours in TYPES:
                async with Rig() as rig:
                    start(rig, name, "in", socket=ours)
                    if name.startswith("@") and ours != kind:
                        await rig.until_state("running")  # abstract names are apart by type
                        await rig.stop()
                        continue
                    with pytest.raises(BindingFailed, match="another program has the socket") as caught:
                        await rig.ended()
                    assert caught.value.retryable
            assert name.startswith("@") or exists(name)


@on_loop
async def test_a_full_backlog_is_somebody_s_too(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(raw(place))
        server.listen(0)
        with connected(place):
            async with Rig() as rig:
                start(rig, place, "in", role="connect")
                await rig.until(lambda: rig.tally.detail == f"whoever listens on {place} accepts nobody")
                await rig.stop()
            async with Rig() as rig:
                start(rig, place, "in")
                with pytest.raises(BindingFailed, match="another program has the socket"):
                    await rig.ended()


@on_loop
async def test_foreign_server_of_each_type_is_spoken_to(place: Path) -> None:
    """The C program's own listen(2) and accept(2), and its end, which is told."""
    async with Rig() as rig:
        server = await foreign_ready("seqpacket", "listen", "receive", str(place), "2")
        start(rig, place, "out", socket="seqpacket", role="connect")
        await rig.until(lambda: rig.tally.detail == f"connected (pid {server.pid})")
        rig.carrier.send([b"1 ", b"2 "])
        assert numbers((await within(server.communicate()))[0]) == [1, 2]
        await rig.until(lambda: rig.tally.state == "waiting")
        await rig.stop()
