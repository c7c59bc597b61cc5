"""UNIX sockets: an adapter on one side; C programs and the standard library's sockets on the other."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.bridge import foreign
from tests.bridge.rig import Rig, on_loop, open_descriptors, within
from tests.bridge.unix_rig import (
    accept,
    connected,
    foreign_ready,
    hung_up,
    listening,
    own_headers,
    receive,
    receive_bytes,
    send,
    start,
)
from towpath.bindings import parse_framing
from towpath.framing import encoder

COUNT = 10_000
KINDS = ("stream", "seqpacket", "dgram")
CONNECTIONS = ("stream", "seqpacket")


@pytest.fixture(params=["path", "abstract"])
def any_place(request: pytest.FixtureRequest, place: Path) -> str:
    """A path, or an abstract name."""
    return str(place) if request.param == "path" else f"@towpath-test-{os.getpid()}-{os.urandom(4).hex()}"


def exists(path: Path | str) -> bool:
    """Whether anything is there."""
    return os.path.lexists(path)


def numbers(lines: bytes) -> list[int]:
    return [int(line.split()[0]) for line in lines.splitlines()]


# -- ten thousand, each way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@on_loop
async def test_ten_thousand_come_in_in_order(any_place: str, kind: str) -> None:
    async with Rig() as rig:
        start(rig, any_place, "in", socket=kind)
        await rig.until_state("running")
        sender = await foreign.start("unix_peer", kind, "connect", "send", any_place, str(COUNT), "16")
        published = await rig.until_published(COUNT)
        assert [int(payload.split()[0]) for payload in published] == list(range(COUNT))
        assert await within(sender.wait()) == 0
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.bytes_in, rig.tally.refused) == (COUNT, 16 * COUNT, 0)


@pytest.mark.parametrize("kind", CONNECTIONS)
@on_loop
async def test_ten_thousand_come_in_from_a_server(any_place: str, kind: str) -> None:
    async with Rig() as rig:
        server = await foreign_ready(kind, "listen", "send", any_place, str(COUNT), "16")
        start(rig, any_place, "in", socket=kind, role="connect")
        published = await rig.until_published(COUNT)
        assert [int(payload.split()[0]) for payload in published] == list(range(COUNT))
        assert await within(server.wait()) == 0
        await rig.until_state("waiting")
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.refused) == (COUNT, 0)


@pytest.mark.parametrize("kind", CONNECTIONS)
@on_loop
async def test_ten_thousand_go_out_in_order(any_place: str, kind: str) -> None:
    async with Rig() as rig:
        start(rig, any_place, "out", socket=kind)
        await rig.until_state("waiting")
        receiver = await foreign.start(
            "unix_peer", kind, "connect", "receive", any_place, str(COUNT), reads=True
        )
        await rig.until_state("running")
        rig.carrier.send([b"%d ." % number for number in range(COUNT)])
        output, _ = await within(receiver.communicate())
        assert numbers(output) == list(range(COUNT))
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (COUNT, 0)


@pytest.mark.parametrize("kind", KINDS)
@on_loop
async def test_ten_thousand_go_out_to_a_server(any_place: str, kind: str) -> None:
    async with Rig() as rig:
        server = await foreign_ready(kind, "listen", "receive", any_place, str(COUNT))
        start(rig, any_place, "out", socket=kind, role="connect")
        await rig.until_state("running")
        rig.carrier.send([b"%d ." % number for number in range(COUNT)])
        output, _ = await within(server.communicate())
        assert numbers(output) == list(range(COUNT))
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (COUNT, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"framing": "line"},
        {"framing": "length"},
        {"framing": "netstring"},
        {"framing": "delimiter", "delimiter": r"\r\n"},
        {"framing": "fixed", "frame_bytes": "8"},
    ],
    ids=lambda options: options["framing"],
)
@on_loop
async def test_every_framing_both_ways(place: Path, options: dict[str, str]) -> None:
    payloads = [b"%08d" % number for number in range(50)]
    stream = b"".join(encoder(parse_framing(options)).encode(payloads))
    async with Rig() as rig:
        start(rig, place, "both", **options)
        await rig.until_state("waiting")
        with connected(place) as end:
            await send(end, stream)
            assert await rig.until_published(50) == payloads
            rig.carrier.send(payloads)
            assert await receive_bytes(end, len(stream)) == stream
        await rig.stop()
        assert rig.tally.refused == 0


@pytest.mark.parametrize("kind", CONNECTIONS)
@on_loop
async def test_packets_keep_their_bounds_and_may_be_empty(place: Path, kind: str) -> None:
    """Of a stream, lines do."""
    ending = b"\n" if kind == "stream" else b""
    payloads = [b"one", b"", b"three " * 5_000, b""]
    async with Rig() as rig:
        start(rig, place, "both", socket=kind)
        await rig.until_state("waiting")
        with connected(place, kind) as end:
            for payload in payloads:
                end.send(payload + ending)
            assert await rig.until_published(4) == payloads
            rig.carrier.send(payloads)
            if kind == "stream":
                whole = b"".join(payload + b"\n" for payload in payloads)
                assert await receive_bytes(end, len(whole)) == whole
            else:
                assert [await receive(end) for _ in payloads] == payloads
        await rig.until_state("waiting")  # the end of a connection is not taken for an empty packet
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.messages_out, rig.tally.refused) == (4, 4, 0)


@on_loop
async def test_empty_datagrams_are_messages(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in", socket="dgram")
        await rig.until_state("running")
        with connected(place, "dgram") as end:
            for payload in (b"", b"x", b""):
                end.send(payload)
            assert await rig.until_published(3) == [b"", b"x", b""]
        await rig.stop()


# -- who it was ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@on_loop
async def test_headers_say_who_sent_it(place: Path, kind: str) -> None:
    async with Rig() as rig:
        start(rig, place, "in", socket=kind)
        await rig.until_state("running")
        for number in (1, 2):
            with connected(place, kind) as end:
                end.send(b"text\n")
                await rig.until_published(number)
        told = [headers.user for headers in rig.carrier.published_headers if headers is not None]
        assert told == [own_headers(0 if kind == "dgram" else number) for number in (1, 2)]
        await rig.stop()


@on_loop
async def test_status_says_who_is_connected(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in")
        await rig.until(lambda: rig.tally.detail == "listening, 0 peers")
        with connected(place):
            await rig.until(lambda: rig.tally.detail == f"listening, 1 peer (pid {os.getpid()})")
            with connected(place):
                await rig.until(lambda: rig.tally.detail.startswith("listening, 2 peers (pid "))
        await rig.until(lambda: rig.tally.detail == "listening, 0 peers")
        await rig.stop()


# -- many peers ----------------------------------------------------------------------------------------------


@on_loop
async def test_every_peer_gets_every_message_and_none_what_another_brought(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "both")
        await rig.until_state("waiting")
        with connected(place) as one, connected(place) as two, connected(place) as three:
            await rig.until(lambda: rig.tally.detail.startswith("listening, 3"))
            await send(one, b"from one\n")
            assert await rig.until_published(1) == [b"from one"]
            rig.carrier.send([b"to all"])
            for end in (one, two, three):
                assert await receive(end) == b"to all\n"
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.messages_out) == (1, 1)


@on_loop
async def test_of_a_queue_each_message_goes_to_one_peer_and_is_settled_when_handed_over(place: Path) -> None:
    async with Rig() as rig:
        rig.carrier.is_settled = True
        start(rig, place, "out", socket="seqpacket")
        await rig.until_state("waiting")
        rig.carrier.send([b"before anybody came"])
        await rig.settle()
        assert rig.carrier.settled == []
        with connected(place, "seqpacket") as one, connected(place, "seqpacket") as two:
            assert await receive(one) == b"before anybody came"
            await rig.until(lambda: rig.tally.detail.startswith("listening, 2"))
            numbered = [b"%d" % number for number in range(100)]
            rig.carrier.send(numbered)
            await rig.until(lambda: len(rig.carrier.settled) == 101)
            got = []
            for end in (one, two):
                end.setblocking(False)
                while True:
                    try:
                        got.append(end.recv(100))
                    except BlockingIOError:
                        break
            assert sorted(got) == sorted(numbered)
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (101, 0)


@on_loop
async def test_a_peer_that_has_ended_its_sending_still_hears(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "both")
        await rig.until_state("waiting")
        with connected(place) as end:
            await send(end, b"question\n")
            end.shutdown(socket.SHUT_WR)
            await rig.until_published(1)
            rig.carrier.send([b"answer"])
            assert await receive(end) == b"answer\n"
        await rig.until_state("waiting")  # told by nothing but the hang-up
        await rig.stop()


@on_loop
async def test_a_datagram_is_answered(place: Path) -> None:
    async with Rig() as rig:
        with listening(place, "dgram") as end:
            start(rig, place, "both", socket="dgram", role="connect")
            await rig.until_state("running")
            rig.carrier.send([b"question"])
            question, sender = await within(asyncio.get_running_loop().sock_recvfrom(end, 100))
            end.sendto(b"answer", sender)
            assert question == b"question" and await rig.until_published(1) == [b"answer"]
            assert rig.carrier.published_headers[0] is not None
            assert rig.carrier.published_headers[0].user == own_headers(0)
            await rig.stop()


# -- the file ------------------------------------------------------------------------------------------------


@on_loop
async def test_the_file_is_made_as_stated_and_goes_with_the_binding(place: Path) -> None:
    mask = os.umask(0o077)
    try:
        async with Rig() as rig:
            owner = f"{os.getuid()}:{os.getgid()}"
            start(rig, place, "in", mode="0662", owner=owner)
            await rig.until_state("running")
            found = os.lstat(place)
            assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o662
            assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
            await rig.stop()
            assert not exists(place)
    finally:
        os.umask(mask)


@pytest.mark.parametrize("kind", KINDS)
@on_loop
async def test_a_socket_that_nobody_has_is_replaced(place: Path, kind: str) -> None:
    listening(place, "dgram").close()
    assert exists(place)
    async with Rig() as rig:
        start(rig, place, "in", socket=kind)
        await rig.until_state("running")
        with connected(place, kind) as end:
            end.send(b"text\n")
            await rig.until_published(1)
        await rig.stop()
    assert not exists(place)


@on_loop
async def test_only_its_own_file_is_removed(place: Path) -> None:
    async with Rig() as rig:
        start(rig, place, "in")
        await rig.until_state("running")
        os.rename(place, f"{place}-moved")
        with listening(place):
            with pytest.raises(Exception, match="was removed or replaced"):
                await rig.ended()
            assert exists(place) and exists(f"{place}-moved")


@pytest.mark.parametrize("kind", CONNECTIONS)
@on_loop
async def test_what_was_sent_before_the_stop_is_carried(place: Path, kind: str) -> None:
    """Also by those who were not yet let in."""
    async with Rig() as rig:
        start(rig, place, "in", socket=kind)
        await rig.until_state("running")
        ends = [connected(place, kind) for _ in range(3)]
        for end in ends:
            end.send(b"text\n")
        await rig.stop()
        assert len(rig.carrier.published) == 3
        for end in ends:
            await hung_up(end)
            end.close()


@pytest.mark.parametrize("direction", ["in", "out", "both"])
@pytest.mark.parametrize("role", ["listen", "connect"])
@on_loop
async def test_nothing_is_left_open_after_a_stop_or_a_cancellation(
    place: Path, direction: str, role: str
) -> None:
    gc.collect()  # what other tests have left
    for is_asked in (True, False):
        async with Rig() as rig:
            before = open_descriptors()
            server = listening(place) if role == "connect" else None
            start(rig, place, direction, role=role)  # type: ignore[arg-type]
            if server is not None:
                end = await accept(server)
                await rig.until_state("running")
            else:
                await rig.until(lambda: rig.tally.state != "pending")
                end = connected(place)
                await rig.until(lambda: "1 peer" in rig.tally.detail)
            if is_asked:
                await rig.stop()
            else:
                assert rig.task is not None
                rig.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await rig.ended()
            end.close()
            if server is not None:
                server.close()
                os.unlink(place)
            assert open_descriptors() == before and not exists(place)
