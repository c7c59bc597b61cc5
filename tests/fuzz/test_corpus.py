"""The corpus, and what becomes of it when bytes are changed, through every target: without atheris, and the
same inputs in every run.
"""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any, Final

import pytest
from google.protobuf.message import DecodeError

from tests.fuzz.targets import TARGETS
from towpath import convert, framing, wire
from towpath.model import Headers
from towpath.v1 import message_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker import settings

CORPUS: Final = Path(__file__).parent / "corpus"
MUTANTS: Final = 1_500
"""Of each target; `make fuzz` goes on where this ends."""
BYTES_MAX: Final = 4_096
SEEDS: Final = sorted(path for path in CORPUS.glob("*/*"))
_WORTH_TRYING: Final = (b"\0", b"\xff", b"\x80", b"\x7f", b"\n", b"\xff" * 4, b"\0" * 8, b"\xff" * 8, b"\x01")


def mutated(generator: random.Random, inputs: list[bytes]) -> bytes:
    """Change an input in one to eight places, or put two together."""
    data = bytearray(generator.choice(inputs))
    for _ in range(generator.randint(1, 8)):
        place = generator.randint(0, len(data))
        match generator.randrange(6):
            case 0:
                data[place : place + 1] = bytes([generator.randrange(256)])
            case 1:
                data[place:place] = generator.choice(_WORTH_TRYING)
            case 2:
                part = generator.choice(_WORTH_TRYING)
                data[place : place + len(part)] = part
            case 3:
                del data[place : place + generator.randint(1, 8)]
            case 4:
                data[place:] = generator.choice(inputs)[place:]
            case 5:
                data[place:place] = data[: generator.randint(0, 64)]
    return bytes(data[:BYTES_MAX])


def test_every_target_has_a_corpus() -> None:
    assert {path.parent.name for path in SEEDS} == set(TARGETS)
    assert sum(path.stat().st_size for path in SEEDS) < 100_000


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_corpus(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


def run_mutants(target: str) -> None:
    """Run a target on changed inputs; what leaves it says which."""
    generator = random.Random(zlib.crc32(target.encode()))
    inputs = [path.read_bytes() for path in SEEDS if path.parent.name == target]
    for _ in range(MUTANTS):
        data = mutated(generator, inputs)
        try:
            TARGETS[target](data)
        except Exception as failure:
            failure.add_note(f"input: {data!r}")
            raise


@pytest.mark.parametrize("target", TARGETS)
def test_what_becomes_of_the_corpus(target: str) -> None:
    run_mutants(target)


def _without_a_check(raw: bytes) -> Headers:
    return convert.headers_from_proto(message_pb2.Headers.FromString(raw))


@pytest.mark.parametrize(
    ("target", "owner", "name", "fault"),
    [
        ("headers", convert, "decode_headers", _without_a_check),
        ("framing", framing._Coder, "_within_limit", lambda self, payloads: payloads),
        ("frames", wire.FrameDecoder, "_decode", lambda self, body: (Frame.FromString(body), [])),
        ("settings", settings, "_check_ring_bytes", lambda ring_bytes: 1 // (ring_bytes - 65536)),
    ],
)
def test_a_fault_that_is_put_in_is_found(
    monkeypatch: pytest.MonkeyPatch, target: str, owner: Any, name: str, fault: Any
) -> None:
    monkeypatch.setattr(owner, name, fault)
    with pytest.raises((DecodeError, AssertionError, ZeroDivisionError)):
        run_mutants(target)
