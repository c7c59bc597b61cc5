"""Loans in every order in which things can happen (``machine``): nobody ever looks at a piece of the slab
that is used again, a writer that waits for one goes on, and so it does when a holder dies, wherever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ring.model import loans
from tests.ring.model.machine import Model, compile_program
from tests.ring.model.test_model import explain

if TYPE_CHECKING:
    from tests.ring.model.machine import Wrong


def model(
    *,
    messages: int = 3,
    pieces: int = 2,
    x: str = loans.READER_X,
    has_y: bool = True,
    has_core: bool = False,
    is_drop: bool = False,
    without: str = "",
    is_pso: bool = True,
) -> Wrong | None:
    texts = {"writer": loans.WRITER, "x": x}
    memory = dict(loans.MEMORY)
    if has_y:
        texts["y"] = loans.READER_Y
    else:
        memory["CURSOR_Y"] = messages
    if has_core:
        texts["core"] = loans.CORE
    if is_drop:
        texts["writer"] = "\n".join(
            line for line in texts["writer"].splitlines() if not line.endswith("#CURSORS")
        )
    programs = []
    for name, text in texts.items():
        text = text.replace("MESSAGES", str(messages)).replace("IS_DROP", str(int(is_drop)))
        text = text.replace("PIECES", str(pieces))
        has_it = any(line.partition("#")[2].strip() == without for line in text.splitlines())
        programs.append(compile_program(name, text, without=without if without and has_it else ""))
    assert not without or any(f"#{without}" in text for text in texts.values())
    return Model(programs, memory, is_pso=is_pso).explore()[1]


@pytest.mark.parametrize("is_drop", [False, True], ids=["block", "drop"])
class TestAsItIs:
    def test_one_reader(self, is_drop: bool) -> None:
        wrong = model(messages=4, has_y=False, is_drop=is_drop)
        assert not wrong, explain(wrong)

    @pytest.mark.parametrize(
        ("pieces", "messages"),
        [(1, 2), pytest.param(2, 3, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
    )
    def test_two_readers(self, is_drop: bool, pieces: int, messages: int) -> None:
        wrong = model(pieces=pieces, messages=messages, is_drop=is_drop)
        assert not wrong, explain(wrong)

    @pytest.mark.parametrize("after_messages", [pytest.param(0, marks=pytest.mark.long), 1])
    @pytest.mark.parametrize("line", range(loans.STEPS))
    def test_a_holder_dies(self, is_drop: bool, line: int, after_messages: int) -> None:
        x = loans.dying(line, after_messages)
        wrong = model(x=x, has_y=False, has_core=True, is_drop=is_drop)
        assert not wrong, explain(wrong)


class TestFaults:
    @pytest.mark.parametrize("line", ["HOLD", "REUSE", "HOLDS"])
    def test_a_piece_is_used_again_while_somebody_looks(self, line: str) -> None:
        wrong = model(messages=4, has_y=False, is_drop=True, without=line)
        assert wrong is not None
        assert "check a == seen" in wrong.what

    def test_a_piece_is_used_again_before_it_was_read(self) -> None:
        wrong = model(messages=4, has_y=False, without="CURSORS")
        assert wrong is not None
        assert "check 0 == 1" in wrong.what

    @pytest.mark.parametrize("fence", ["LOANS", "RELEASE"])
    def test_a_writer_that_waits_is_not_told(self, fence: str) -> None:
        wrong = model(pieces=1, has_y=False, without=fence)
        assert wrong is not None
        assert "writer never goes on" in wrong.what

    def test_nobody_withdraws_the_page_of_one_that_died(self) -> None:
        x = loans.dying(loans.STEPS - 5, 0).replace("tell DEAD 1", "")
        wrong = model(messages=4, x=x, has_y=False)
        assert wrong is not None
        assert "writer never goes on" in wrong.what
