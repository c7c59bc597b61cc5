"""Messages in pieces: whole again whatever came in between, or counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from towpath_broker.gateways.bridge.splitting import HEAD_BYTES, UNFINISHED_MAX, Joiner, Splitter

messages = st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3)), max_size=12)


@given(messages, st.integers(1, 16))
def test_split_and_joined(sent: list[tuple[bytes, int]], room: int) -> None:
    splitter, joiner = Splitter(HEAD_BYTES + room, 7), Joiner(40)
    pieces = [(piece, mark) for payload, mark in sent for piece in splitter.split(payload)]
    assert all(len(piece) <= HEAD_BYTES + room for piece, _ in pieces)
    joined = [(whole, mark) for piece, mark in pieces if (whole := joiner.feed(piece, mark)) is not None]
    assert joined == sent
    assert joiner.refused == 0


@given(messages, st.integers(1, 16), st.integers(0, 2))
def test_a_queue_that_lets_higher_priorities_overtake(
    sent: list[tuple[bytes, int]], room: int, stream: int
) -> None:
    splitter, joiner = Splitter(HEAD_BYTES + room, stream), Joiner(40)
    pieces = [(piece, mark) for payload, mark in sent for piece in splitter.split(payload)]
    pieces.sort(key=lambda each: -each[1])  # stable: as the kernel does with a queue that was full of them
    joined = [(whole, mark) for piece, mark in pieces if (whole := joiner.feed(piece, mark)) is not None]
    assert joined == sorted(sent, key=lambda each: -each[1])
    assert joiner.refused == 0


@given(messages, st.integers(1, 16), st.data())
def test_what_is_missing_is_counted_and_nothing_wrong_comes_out(
    sent: list[tuple[bytes, int]], room: int, data: st.DataObject
) -> None:
    splitter, joiner = Splitter(HEAD_BYTES + room, 1), Joiner(40)
    joined: list[bytes] = []
    whole_count = 0
    for payload, _ in sent:
        pieces = splitter.split(payload)
        kept = [data.draw(st.booleans()) for _ in pieces]
        whole_count += all(kept)
        for piece, is_kept in zip(pieces, kept, strict=True):
            if is_kept and (whole := joiner.feed(piece, 0)) is not None:
                joined.append(whole)
    joiner.end()
    assert len(joined) == whole_count
    rest = iter(payload for payload, _ in sent)
    assert all(any(payload == each for each in rest) for payload in joined)  # a subsequence
    assert joiner.refused <= len(sent) - whole_count


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_any_bytes_are_taken_or_counted(pieces: list[bytes]) -> None:
    joiner = Joiner(40)
    for piece in pieces:
        for start in (b"", b"TPm1"):
            joiner.feed(start + piece, 0)
    assert len(joiner._unfinished) <= UNFINISHED_MAX


def test_unfinished_ones_are_bounded() -> None:
    joiner = Joiner(1000)
    for stream in range(3 * UNFINISHED_MAX):
        assert joiner.feed(Splitter(HEAD_BYTES + 1, stream).split(b"ab")[0], 0) is None
    assert len(joiner._unfinished) == UNFINISHED_MAX
    assert joiner.refused == 2 * UNFINISHED_MAX
