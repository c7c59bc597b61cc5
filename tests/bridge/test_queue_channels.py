"""Bindings of direction out on a channel of kind queue: acknowledged after the hand-over, not before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bridge.rig import Rig, on_loop, read_bytes, shell
from towpath_broker.gateways.bridge import outflow


@on_loop
async def test_settled_when_it_is_in_the_fifo(tmp_path: Path) -> None:
    async with Rig() as rig:
        rig.carrier.is_settled = True
        rig.fifo(tmp_path / "out", "out")
        await rig.until_state("waiting")
        rig.carrier.send([b"one", b"two"])
        await rig.until(lambda: not rig.carrier.waiting)
        await rig.settle()
        assert rig.carrier.settled == []  # nobody reads yet
        reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
        await rig.until(lambda: rig.carrier.settled == [b"one", b"two"])
        assert await read_bytes(reader, 8) == b"one\ntwo\n"
        os.close(reader)
        await rig.stop()
        assert rig.tally.refused == 0


@on_loop
async def test_what_cannot_be_framed_is_rejected(tmp_path: Path) -> None:
    async with Rig() as rig:
        rig.carrier.is_settled = True
        rig.fifo(tmp_path / "out", "out", frame_bytes_max="5")
        await rig.until_state("waiting")
        reader = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
        rig.carrier.send([b"one", b"much too long", b"two\nlines", b"three"])
        await rig.until(lambda: rig.carrier.settled == [b"one", b"three"])
        assert rig.carrier.rejected == [b"much too long", b"two\nlines"]
        assert rig.tally.refused == 2
        os.close(reader)
        await rig.stop()


@on_loop
async def test_nothing_is_dropped_while_nobody_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outflow, "HELD_BYTES_MAX", 10_000)
    async with Rig() as rig:
        rig.carrier.is_settled = True
        rig.fifo(tmp_path / "out", "out", when_absent="drop", frame_bytes_max="100")
        await rig.until_state("waiting")
        rig.carrier.send([b"%05d" % number for number in range(50_000)])
        await rig.settle()
        assert rig.carrier.waiting and rig.tally.refused == 0
        await rig.stop()
        # What was held goes back into the queue: neither settled nor counted.
        assert (rig.carrier.settled, rig.carrier.rejected, rig.tally.refused) == ([], [], 0)


@on_loop
async def test_a_command_s_input(tmp_path: Path) -> None:
    async with Rig() as rig:
        rig.carrier.is_settled = True
        rig.pipe(["sh", "-c", f"cat > {tmp_path}/all"], "out")
        await rig.until_state("running")
        rig.carrier.send([b"%05d" % number for number in range(1000)])
        await rig.until(lambda: len(rig.carrier.settled) == 1000)
        await rig.stop()
        assert (await shell(f"wc -l < {tmp_path}/all")).split() == [b"1000"]
