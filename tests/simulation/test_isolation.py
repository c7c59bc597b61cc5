"""The checker knows the anomalies by their names in the literature, and lets serializable histories pass."""

from __future__ import annotations

import pytest

from tests.simulation.isolation import Transaction, anomalies

T = Transaction


def test_a_serial_history_passes() -> None:
    assert anomalies([T("a", {"x": 1}, {"x": 0}, 0, 1), T("b", {"x": 2, "y": 1}, {"x": 1}, 2, 3)]) == []


def test_concurrent_transactions_in_either_order_pass() -> None:
    assert anomalies([T("a", {"x": 2}, {}, 0, 5), T("b", {"x": 1}, {}, 1, 4)]) == []


@pytest.mark.parametrize(
    ("name", "history"),
    [
        ("lost update", [T("a", {"x": 1}, {"x": 0}), T("b", {"x": 1}, {"x": 0})]),
        ("dirty read (G1a)", [T("a", {}, {"x": 7})]),
        ("write cycle (G0)", [T("a", {"x": 1, "y": 2}), T("b", {"x": 2, "y": 1})]),
        ("circular information (G1c)", [T("a", {"x": 1}, {"y": 1}), T("b", {"y": 1}, {"x": 1})]),
        ("write skew (G2)", [T("a", {"x": 1}, {"y": 0}), T("b", {"y": 1}, {"x": 0})]),
        ("stale read", [T("a", {"x": 1}, {}, 0, 1), T("b", {}, {"x": 0}, 2, 3)]),
        ("overtaken", [T("a", {"x": 2}, {}, 0, 1), T("b", {"x": 1}, {}, 2, 3)]),
    ],
)
def test_an_anomaly_is_found(name: str, history: list[Transaction]) -> None:
    assert anomalies(history), name


def test_a_version_of_a_transaction_with_unknown_outcome_may_be_seen() -> None:
    assert anomalies([T("a", {}, {"x": 1})], unknown=frozenset({("x", 1)})) == []
