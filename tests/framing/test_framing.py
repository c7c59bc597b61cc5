"""Framing: every framing carries what it promises, through every split, and says what it did not carry."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from towpath.errors import BadFrame, FrameTooLarge, InvalidArgument
from towpath.framing import Decoder, Framing, FramingOptions, decoder, encoder

LINE = FramingOptions()
CRLF = FramingOptions(Framing.DELIMITER, delimiter=b"\r\n")
OVERLAPPING = FramingOptions(Framing.DELIMITER, delimiter=b"aab")
LENGTH = FramingOptions(Framing.LENGTH)
NETSTRING = FramingOptions(Framing.NETSTRING)
FIXED = FramingOptions(Framing.FIXED, frame_bytes=4)
RAW = FramingOptions(Framing.RAW)
FRAMED = [LINE, CRLF, OVERLAPPING, LENGTH, NETSTRING, FIXED]


def split_at(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def feed_all(target: Decoder, pieces: list[bytes]) -> list[bytes]:
    return [frame for piece in pieces for frame in target.feed(piece)]


@pytest.mark.parametrize("options", FRAMED, ids=lambda o: f"{o.framing}{o.delimiter!r}")
@given(
    payloads=st.lists(st.binary(max_size=6) | st.text("ab\r\n", max_size=6).map(str.encode)),
    cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=30),
)
def test_what_is_encoded_is_decoded_whatever_the_split(
    options: FramingOptions, payloads: list[bytes], cuts: list[int]
) -> None:
    writer, reader = encoder(options), decoder(options)
    frames = writer.encode(payloads)
    decoded = feed_all(reader, split_at(b"".join(frames), cuts))

    assert len(frames) == len(payloads) - writer.refused
    if options.framing in (Framing.LENGTH, Framing.NETSTRING):
        assert decoded == payloads
    elif options.framing is Framing.FIXED:
        assert decoded == [p for p in payloads if len(p) == 4]
    else:
        delimiter = options.delimiter or b"\n"
        carried = [p for p in payloads if (p + delimiter).find(delimiter) == len(p)]
        assert decoded == carried
    assert (reader.refused, reader.pending_bytes, reader.end()) == (0, 0, [])


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"aab", b"aa", b"abab"])
@given(stream=st.text("ab\r\n", max_size=60).map(str.encode), cuts=st.lists(st.integers(0, 60), max_size=20))
def test_a_delimited_stream_in_pieces_is_split_like_the_whole(
    delimiter: bytes, stream: bytes, cuts: list[int]
) -> None:
    reader = decoder(FramingOptions(Framing.DELIMITER, delimiter=delimiter))
    *frames, rest = stream.split(delimiter)
    assert feed_all(reader, split_at(stream, cuts)) == frames
    assert reader.pending_bytes == len(rest)
    assert reader.end() == ([rest] if rest else [])


@pytest.mark.parametrize("options", [LINE, CRLF], ids=["line", "crlf"])
@given(
    sizes=st.lists(st.integers(0, 30), max_size=12),
    last_bytes=st.integers(0, 30),
    cuts=st.lists(st.integers(0, 400), max_size=30),
)
def test_frames_above_the_limit_are_counted_once_and_the_stream_goes_on(
    options: FramingOptions, sizes: list[int], last_bytes: int, cuts: list[int]
) -> None:
    limit = 10
    limited = FramingOptions(options.framing, delimiter=options.delimiter, frame_bytes_max=limit)
    delimiter = options.delimiter or b"\n"
    payloads = [bytes([97 + i]) * size for i, size in enumerate(sizes)]
    last = b"z" * last_bytes
    reader = decoder(limited)

    decoded = feed_all(reader, split_at(b"".join(p + delimiter for p in payloads) + last, cuts))
    assert reader.pending_bytes <= limit + len(delimiter) - 1
    decoded += reader.end()

    assert decoded == [p for p in [*payloads, *([last] if last else [])] if len(p) <= limit]
    too_large = [len(p) for p in [*payloads, last] if len(p) > limit]
    assert reader.refused == len(too_large)
    if too_large:
        assert isinstance(reader.last_error, FrameTooLarge)
        assert f"{too_large[-1]} bytes; 10 are allowed" in reader.last_error.message


def test_a_frame_without_end_is_reported_while_it_lasts_and_its_size_when_it_ends() -> None:
    reader = decoder(FramingOptions(frame_bytes_max=8))
    assert reader.feed(b"0123456789") == []
    assert reader.refused == 1
    assert reader.last_error is not None and "more than 9 bytes" in reader.last_error.message
    for _ in range(1000):
        assert reader.feed(b"0123456789") == []
    assert (reader.refused, reader.pending_bytes) == (1, 0)
    assert reader.feed(b"\nnext\n") == [b"next"]
    assert reader.refused == 1
    assert "a frame has 10010 bytes" in reader.last_error.message


@pytest.mark.parametrize(
    ("options", "stream"),
    [
        (FramingOptions(Framing.LENGTH, frame_bytes_max=5), b"\0\0\0\1a\0\0\0\6bbbbbb\0\0\0\1c"),
        (FramingOptions(Framing.NETSTRING, frame_bytes_max=5), b"1:a,6:bbbbbb,1:c,"),
    ],
    ids=["length", "netstring"],
)
@given(cuts=st.lists(st.integers(0, 40), max_size=20))
def test_a_declared_length_above_the_limit_is_skipped_exactly(
    options: FramingOptions, stream: bytes, cuts: list[int]
) -> None:
    reader = decoder(options)
    assert feed_all(reader, split_at(stream, cuts)) == [b"a", b"c"]
    assert reader.refused == 1 and not reader.is_broken
    assert isinstance(reader.last_error, FrameTooLarge) and "6 bytes; 5 are" in reader.last_error.message


@pytest.mark.parametrize(
    "stream",
    [b"x", b":", b"01:a,", b"-1:,", b"1:ab", b" 1:a,", b"12345678901", b"1;a,", b"1:a\n", b"\xb2:aa,"],
)
def test_a_malformed_netstring_breaks_the_stream_until_its_end(stream: bytes) -> None:
    reader = decoder(NETSTRING)
    assert feed_all(reader, [b"2:ok,", *(stream[i : i + 1] for i in range(len(stream)))]) == [b"ok"]
    assert reader.is_broken
    assert reader.refused == 1 and isinstance(reader.last_error, BadFrame)
    assert reader.feed(b"2:no,") == [] and reader.pending_bytes == 0
    assert reader.end() == [] and not reader.is_broken
    assert reader.feed(b"3:yes,") == [b"yes"]
    assert reader.refused == 1


@pytest.mark.parametrize("stream", [b"5:ab", b"5", b"5:abcde"], ids=["payload", "header", "comma"])
def test_a_netstring_cut_short_is_refused_and_the_next_stream_is_clean(stream: bytes) -> None:
    reader = decoder(NETSTRING)
    assert reader.feed(stream) == [] and reader.end() == []
    assert reader.refused == 1 and isinstance(reader.last_error, BadFrame)
    assert reader.feed(b"0:,1:a,") == [b"", b"a"]


@pytest.mark.parametrize(("options", "stream"), [(LENGTH, b"\0\0\0\4ab"), (LENGTH, b"\0\0"), (FIXED, b"abc")])
def test_length_and_fixed_refuse_a_frame_cut_short(options: FramingOptions, stream: bytes) -> None:
    reader = decoder(options)
    assert reader.feed(stream) == [] and reader.pending_bytes == len(stream)
    assert reader.end() == []
    assert reader.refused == 1 and isinstance(reader.last_error, BadFrame)
    assert reader.pending_bytes == 0


def test_a_frame_cut_short_while_it_is_skipped_is_counted_once() -> None:
    reader = decoder(FramingOptions(Framing.LENGTH, frame_bytes_max=2))
    assert reader.feed(b"\0\0\0\5ab") == [] and reader.end() == []
    assert reader.refused == 1
    assert reader.feed(b"\0\0\0\1a") == [b"a"]


def test_the_unfinished_line_waits_until_it_is_complete_and_end_makes_it_a_frame() -> None:
    reader = decoder(LINE)
    assert reader.feed(b"one\ntw") == [b"one"]
    assert reader.feed(b"o") == []
    assert reader.feed(b"\n\nthree") == [b"two", b""]
    assert reader.end() == [b"three"]
    assert reader.end() == []


def test_carriage_returns_belong_to_a_line_and_not_to_crlf() -> None:
    assert decoder(LINE).feed(b"a\r\n") == [b"a\r"]
    assert decoder(CRLF).feed(b"a\r\nb\n") == [b"a"]


def test_raw_hands_on_what_came_in_pieces_within_the_limit() -> None:
    reader = decoder(FramingOptions(Framing.RAW, frame_bytes_max=4))
    assert reader.feed(b"abcdefghi") == [b"abcd", b"efgh", b"i"]
    assert reader.feed(b"") == [] and reader.end() == []
    assert encoder(RAW).encode([b"a", b"", b"b\n"]) == [b"a", b"", b"b\n"]


@pytest.mark.parametrize(
    ("options", "payload", "error"),
    [
        (LINE, b"a\nb", BadFrame),
        (CRLF, b"a\r\n", BadFrame),
        (FramingOptions(Framing.DELIMITER, delimiter=b"aa"), b"xa", BadFrame),
        (FIXED, b"abc", BadFrame),
        (FIXED, b"abcde", BadFrame),
        (FramingOptions(frame_bytes_max=2), b"abc", FrameTooLarge),
        (FramingOptions(Framing.LENGTH, frame_bytes_max=2), b"abc", FrameTooLarge),
        (FramingOptions(Framing.NETSTRING, frame_bytes_max=2), b"abc", FrameTooLarge),
    ],
)
def test_what_a_framing_cannot_carry_is_left_out_and_counted(
    options: FramingOptions, payload: bytes, error: type[Exception]
) -> None:
    writer = encoder(options)
    good = b"1234"[: min(4, options.frame_bytes_max)]
    frames = writer.encode([good, payload, good, payload])
    assert writer.refused == 2 and isinstance(writer.last_error, error)
    assert decoder(options).feed(b"".join(frames)) == [good, good]


def test_crlf_carries_single_newlines() -> None:
    writer = encoder(CRLF)
    assert writer.encode([b"a\nb"]) == [b"a\nb\r\n"] and writer.refused == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: FramingOptions(frame_bytes_max=0),
        lambda: FramingOptions(frame_bytes_max=(1 << 28) + 1),
        lambda: FramingOptions(Framing.DELIMITER),
        lambda: FramingOptions(Framing.DELIMITER, delimiter=b"x" * 17),
        lambda: FramingOptions(Framing.LINE, delimiter=b"x"),
        lambda: FramingOptions(Framing.FIXED),
        lambda: FramingOptions(Framing.FIXED, frame_bytes=11, frame_bytes_max=10),
        lambda: FramingOptions(Framing.RAW, frame_bytes=4),
    ],
)
def test_options_that_make_no_sense_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(InvalidArgument):
        make()


@settings(max_examples=300)
@given(
    options=st.sampled_from([*FRAMED, RAW, FramingOptions(Framing.NETSTRING, frame_bytes_max=3)]),
    pieces=st.lists(st.binary(max_size=20) | st.sampled_from([b"3:abc,", b"\0\0\0\2", b"\r", b"\n", b"aa"])),
)
def test_garbage_raises_nothing_and_is_bounded(options: FramingOptions, pieces: list[bytes]) -> None:
    reader = decoder(options)
    for piece in pieces:
        for frame in reader.feed(piece):
            assert len(frame) <= options.frame_bytes_max
        assert reader.pending_bytes <= options.frame_bytes_max + 16
    reader.end()
    assert reader.pending_bytes == 0


@pytest.mark.parametrize("options", FRAMED, ids=lambda o: f"{o.framing}{o.delimiter!r}")
@pytest.mark.timeout(60)
def test_tiny_pieces_cost_in_proportion_to_their_number(options: FramingOptions) -> None:
    """Work that grew with the square of the size would take minutes here and not end before the time-out."""
    size = 1 << 20
    big = FramingOptions(
        options.framing,
        delimiter=options.delimiter,
        frame_bytes=size if options.frame_bytes else 0,
        frame_bytes_max=size,
    )
    payload = random.Random(1).randbytes(size).translate(None, b"\r\nb").ljust(size, b"x")
    stream = encoder(big).encode([payload])[0]
    reader = decoder(big)
    frames = feed_all(reader, [stream[i : i + 2] for i in range(0, len(stream), 2)])
    assert frames == [payload]
