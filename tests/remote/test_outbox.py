"""What a publisher waits to publish: batches, acknowledgements and failures. No connection."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath import errors
from towpath.remote.outbox import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, Outbox, Submission
from towpath.v1.message_pb2 import Headers

LOST = errors.ConnectionLost("lost")


def submission(outbox: Outbox, payloads: list[bytes], headers: Headers | None = None) -> Submission:
    made = Submission(payloads, headers, lambda: None)
    outbox.submit(made)
    return made


def test_what_waits_goes_in_one_batch_and_each_learns_its_number() -> None:
    outbox = Outbox()
    first, second = submission(outbox, [b"a"]), submission(outbox, [b"b", b"c"])
    assert outbox.take().payloads == [b"a", b"b", b"c"]
    late = submission(outbox, [b"d"])
    assert not first.is_settled
    outbox.acknowledge(41)
    assert [(each.is_settled, each.last_seq) for each in (first, second, late)] == [
        (True, 41),
        (True, 43),
        (False, 0),
    ]
    assert outbox.take().payloads == [b"d"]


def test_a_large_submission_is_cut_and_settled_at_its_end() -> None:
    outbox = Outbox()
    large = submission(outbox, [b""] * (BATCH_MESSAGES_MAX + 1))
    small = submission(outbox, [b"x"])
    assert len(outbox.take().payloads) == BATCH_MESSAGES_MAX
    outbox.acknowledge(1)
    assert (large.is_settled, large.acknowledged) == (False, BATCH_MESSAGES_MAX)
    assert outbox.take().payloads == [b"", b"x"]
    outbox.acknowledge(BATCH_MESSAGES_MAX + 1)
    assert large.is_settled and small.is_settled
    assert (large.last_seq, small.last_seq) == (BATCH_MESSAGES_MAX + 1, BATCH_MESSAGES_MAX + 2)
    assert not outbox


def test_batches_are_bounded_in_bytes_but_one_message_always_goes() -> None:
    outbox = Outbox()
    submission(outbox, [bytes(BATCH_BYTES_MAX + 5), b"x", bytes(BATCH_BYTES_MAX - 1), b"y"])
    sizes = []
    while outbox:
        sizes.append([len(payload) for payload in outbox.take().payloads])
        outbox.acknowledge(1)
    assert sizes == [[BATCH_BYTES_MAX + 5], [1, BATCH_BYTES_MAX - 1], [1]]


def test_headers_are_a_column_or_none() -> None:
    outbox = Outbox()
    submission(outbox, [b"a"])
    assert outbox.take().headers is None
    outbox.acknowledge(1)
    submission(outbox, [b"a"])
    submission(outbox, [b"b", b"c"], Headers(priority=2))
    headers = outbox.take().headers
    assert headers is not None
    assert [each.priority for each in headers] == [0, 2, 2]


def test_a_failure_settles_what_it_touched_and_nothing_else() -> None:
    outbox = Outbox()
    first = submission(outbox, [b""] * (BATCH_MESSAGES_MAX + 1))
    waiting = submission(outbox, [b"w"])
    outbox.take()
    outbox.fail(LOST, is_known=False)
    assert (first.error, first.acknowledged, first.on_way) == (LOST, 0, BATCH_MESSAGES_MAX)
    assert not waiting.is_settled
    assert outbox.take().payloads == [b"w"]
    outbox.fail(errors.LimitExceeded("no"), is_known=True)
    assert (waiting.acknowledged, waiting.on_way) == (0, 0)
    assert not outbox


def test_what_is_withdrawn_is_not_sent() -> None:
    outbox = Outbox()
    sent, unsent = submission(outbox, [b"s"]), submission(outbox, [b"u"])
    outbox.withdraw(unsent)
    assert outbox.take().payloads == [b"s"]
    outbox.withdraw(sent)
    assert (sent.on_way, unsent.on_way) == (1, 0)
    outbox.acknowledge(1)
    assert not outbox


def test_the_end_settles_everything() -> None:
    outbox = Outbox()
    settled: list[int] = []
    for number in range(3):
        outbox.submit(Submission([b"x"], None, lambda n=number: settled.append(n)))  # type: ignore[misc]
        if number == 0:
            outbox.take()
    outbox.fail_all(LOST)
    assert settled == [0, 1, 2]
    assert not outbox


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 400_000), min_size=1, max_size=6),
            st.sampled_from(["send", "fail", "refuse"]),
        ),
        max_size=40,
    )
)
def test_each_message_is_sent_at_most_once_and_in_order(steps: list[list[int] | str]) -> None:
    outbox = Outbox()
    submissions: list[Submission] = []
    sent: list[bytes] = []
    acknowledged = 0
    number = 0
    for step in steps:
        if isinstance(step, list):
            payloads = [b"%06d" % (number + index) + bytes(size) for index, size in enumerate(step)]
            number += len(step)
            submissions.append(submission(outbox, payloads))
        elif outbox:
            batch = outbox.take()
            sent += [payload[:6] for payload in batch.payloads]
            if step == "send":
                outbox.acknowledge(acknowledged + 1)
                acknowledged += len(batch.payloads)
            else:
                outbox.fail(LOST, is_known=step == "refuse")
    assert sent == sorted(set(sent))
    assert sum(each.acknowledged for each in submissions) == acknowledged
    assert all(each.is_settled for each in submissions if each.on_way)


def test_a_batch_needs_something_to_send() -> None:
    with pytest.raises(AssertionError):
        Outbox().take()
