"""From requirements and measurements to an advice. Pure.

Theory of operation
    A mechanism is *refused* where it cannot do what is required: it does not leave the host, keeps nothing,
    is too slow, or could not be measured at all. What it does not do by itself, but can be made to, is its
    *extra*: a sender that writes to each receiver, answers that have to be matched with questions, a rate
    that is just about enough. Those with fewest extras are before the others. Among equals:

    - with a rate asked for, whatever carries it with room to spare (``HEADROOM``) is fast enough, and the one
      of which programs have to know least is first;
    - else the fastest is: by round trip where answers are needed, by rate where not; but what is within
      ``ALIKE`` of the fastest counts as fast, so that a noisy measurement does not decide, and among these
      again the simplest is first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from towpath.advise.model import BATCH_COUNT, MECHANISMS, Measurement, Mechanism, Requirements

HEADROOM: Final = 2.0
"""Times the required rate that a mechanism should carry: a measurement is the best that can be."""
ALIKE: Final = 2.0
"""Figures within this factor count as equal."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mechanism, judged.

    Attributes:
        refusals: why it will not do; empty when it will.
        extras: what has to be done by the programs, or is just about enough.
        remarks: what else to know.
    """

    mechanism: Mechanism
    measurement: Measurement
    refusals: tuple[str, ...]
    extras: tuple[str, ...]
    remarks: tuple[str, ...]


def rank(requirements: Requirements, measurements: Mapping[str, Measurement]) -> list[Candidate]:
    """Judge every mechanism.

    Args:
        measurements: by mechanism, of the required size.

    Returns:
        Those that will do, the advised one first; then the others in their usual order.
    """
    found = [_judge(MECHANISMS[name], measured, requirements) for name, measured in measurements.items()]
    fit = [candidate for candidate in found if not candidate.refusals]
    return _sorted(fit, requirements) + [candidate for candidate in found if candidate.refusals]


def _judge(mechanism: Mechanism, measured: Measurement, required: Requirements) -> Candidate:
    refusals: list[str] = []
    if required.reach == "network" and not mechanism.reaches_network:
        refusals.append("does not leave the host")
    if required.is_durable and not mechanism.is_durable:
        refusals.append("keeps nothing when its programs or the host go down")
    if measured.obstacle:
        refusals += [] if refusals else [measured.obstacle]
    elif required.rate is not None and capacity(measured, required) < required.rate:
        verb = "answers" if required.is_sync else "carries"
        refusals.append(
            f"{verb} {capacity(measured, required):,.0f} a second, {required.rate:,.15g} are needed"
        )
    extras: list[str] = []
    if required.fan_out > 1 and not mechanism.fans_out:
        extras.append(f"the sender must write to each of the {required.fan_out} receivers")
    if required.is_sync and (required.is_durable or not mechanism.answers):
        extras.append("one each way, and the programs must match answers with questions")
    if required.rate is not None and not refusals:
        times = capacity(measured, required) / required.rate
        if times < HEADROOM:
            extras.append(f"manages only {times:.1f} times what is needed")
    remarks = [f"programs need {mechanism.knows}"]
    if not mechanism.keeps_apart:
        remarks.append("it carries bytes: agree where a message ends, by lines for instance")
    if required.is_durable:
        remarks.append(f"measured with up to {BATCH_COUNT} messages published together; one by one is slower")
    if mechanism.note:
        remarks.append(mechanism.note)
    return Candidate(mechanism, measured, tuple(refusals), tuple(extras), tuple(remarks))


def capacity(measured: Measurement, required: Requirements) -> float:
    """How many messages a second one sender gets rid of; where each is answered, one after the other."""
    return 1e6 / measured.p50_us if required.is_sync else measured.rate


def _cost(candidate: Candidate, required: Requirements) -> float:
    """What a message costs, in microseconds."""
    return 1e6 / capacity(candidate.measurement, required)


def _sorted(candidates: list[Candidate], required: Requirements) -> list[Candidate]:
    """The best first; see the module's text."""
    ordered: list[Candidate] = []
    for count in sorted({len(candidate.extras) for candidate in candidates}):
        equals = [candidate for candidate in candidates if len(candidate.extras) == count]
        limit = ALIKE * min(_cost(candidate, required) for candidate in equals)
        if required.rate is not None and not required.is_sync:
            limit = float("inf")
        ordered += sorted(equals, key=lambda each, limit=limit: _place(each, required, limit))  # type: ignore[misc]
    return ordered


def _place(candidate: Candidate, required: Requirements, limit: float) -> tuple[bool, float, float]:
    """Where it stands among equals: up to a cost the simplest first, beyond it the fastest."""
    cost = _cost(candidate, required)
    return (False, candidate.mechanism.effort, cost) if cost <= limit else (True, cost, 0.0)


def reason(ranked: list[Candidate], required: Requirements) -> str:
    """Why the first is advised: one or two sentences; empty when nothing will do.

    Args:
        ranked: what :func:`rank` returned.
    """
    fit = [candidate for candidate in ranked if not candidate.refusals]
    if not fit:
        return ""
    best, others = fit[0], fit[1:]
    if required.is_sync:
        did = f"an answer takes {_micros(best.measurement.p50_us)}"
    else:
        did = f"it carries {best.measurement.rate:,.0f} messages a second"
    if not others:
        return f"Nothing else will do. Here {did}."
    peers = [candidate for candidate in others if len(candidate.extras) == len(best.extras)]
    if not peers:
        how = "It leaves least to the programs" if best.extras else "It alone does all this by itself"
        return f"{how}, and {did}."
    ratio = min(_cost(candidate, required) for candidate in peers) / _cost(best, required)
    if required.rate is not None and not required.is_sync and best.measurement.rate >= required.rate:
        times = best.measurement.rate / required.rate
        asked = required.fan_out > 1
        begin = "Of those that do all this by themselves it is" if asked and not best.extras else "It is"
        return (
            f"{begin} the simplest that is fast enough: {did}, {times:,.1f} times what is needed, and "
            f"programs need only {best.mechanism.knows}."
        )
    if ratio >= ALIKE:
        return f"It is the fastest: {did}, {ratio:.1f} times as fast as the next."
    if ratio >= 1:
        return f"It is the fastest, and of those that come near it the simplest: {did}."
    return f"It is the simplest of the fast ones: {did}; the fastest is {1 / ratio:.1f} times as fast."


def _micros(span_us: float) -> str:
    return f"{span_us:,.1f} µs" if span_us < 1000 else f"{span_us / 1000:,.1f} ms"
