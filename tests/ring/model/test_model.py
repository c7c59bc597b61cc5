"""The ring's protocols in every order in which they can happen (``machine``), and with one line left out or
misplaced, which must be found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ring.model import protocols
from tests.ring.model.machine import Model, compile_program

if TYPE_CHECKING:
    from tests.ring.model.machine import Memory, Wrong


def model(
    texts: dict[str, str],
    variables: str,
    *,
    messages: int,
    reach: int = 0,
    without: str = "",
    is_pso: bool = False,
) -> Wrong | None:
    """Check programs by name; `without` leaves out the lines of that tag, in whichever program has them."""
    memory = {**protocols.MEMORY, **dict.fromkeys(variables.split(), 0)}
    programs = []
    for name, text in texts.items():
        text = text.replace("MESSAGES", str(messages)).replace("REACH", str(reach))
        has_it = any(line.partition("#")[2].strip() == without for line in text.splitlines())
        programs.append(compile_program(name, text, without=without if without and has_it else ""))
    assert not without or any(without in text for text in texts.values())

    def at_end(memory: Memory, registers: list[dict[str, int]]) -> str:
        for each in registers:
            if "received" in each and each["received"] + each["missed"] != messages:
                return f"received {each['received']}, missed {each['missed']} of {messages}"
        return ""

    _states, wrong = Model(programs, memory, is_pso=is_pso, at_end=at_end).explore()
    return wrong


def explain(wrong: Wrong | None) -> str:
    return "" if wrong is None else "\n".join([wrong.what, *wrong.trace])


# The last message overwrites the first: the least that shows anything. One more takes many times as long.
ENOUGH = pytest.mark.parametrize("messages", [3, pytest.param(4, marks=pytest.mark.long)])

BLOCK = "CURSOR WAITS TAIL SLEEPING"
ATTACH = "CURSOR WAITS TAIL SLEEPING GEN HEARD ANNOUNCED"


# With stores to different words in any order (pso) everything can happen that can with them in order (tso).
@pytest.mark.parametrize("is_pso", [pytest.param(False, marks=pytest.mark.long), True], ids=["tso", "pso"])
class TestAsItIs:
    def test_block(self, is_pso: bool) -> None:
        texts = {"writer": protocols.BLOCK_WRITER, "reader": protocols.BLOCK_READER}
        wrong = model(texts, BLOCK, messages=4, is_pso=is_pso)
        assert not wrong, explain(wrong)

    def test_doorbells(self, is_pso: bool) -> None:
        texts = {"writer": protocols.BELL_WRITER, "reader": protocols.BELL_READER}
        wrong = model(texts, f"{BLOCK} BELL ROOMBELL", messages=4, is_pso=is_pso)
        assert not wrong, explain(wrong)

    def test_drop(self, is_pso: bool) -> None:
        texts = {"writer": protocols.DROP_WRITER, "reader": protocols.DROP_READER}
        wrong = model(texts, "TAIL OLDEST", messages=5, is_pso=is_pso)
        assert not wrong, explain(wrong)

    @ENOUGH
    @pytest.mark.parametrize(
        ("core", "reader"),
        [
            (protocols.ATTACH_CORE, protocols.ATTACH_READER),
            (protocols.LATE_CORE, protocols.LATE_READER),
        ],
        ids=["announced", "late"],
    )
    def test_attach(self, is_pso: bool, messages: int, core: str, reader: str) -> None:
        texts = {"core": core, "writer": protocols.ATTACH_WRITER, "reader": reader}
        wrong = model(texts, ATTACH, messages=messages, is_pso=is_pso)
        assert not wrong, explain(wrong)

    @ENOUGH
    @pytest.mark.parametrize("reach", [1, 2])
    def test_history(self, is_pso: bool, messages: int, reach: int) -> None:
        texts = {
            "core": protocols.LATE_CORE,
            "writer": protocols.HISTORY_WRITER,
            "reader": protocols.HISTORY_READER,
        }
        wrong = model(texts, f"{ATTACH} OLDEST HISTORY", messages=messages, reach=reach, is_pso=is_pso)
        assert not wrong, explain(wrong)


class TestFaults:
    @pytest.mark.parametrize("fence", ["PUBLISH", "COMMIT"])
    def test_a_missing_fence(self, fence: str) -> None:
        texts = {"writer": protocols.BLOCK_WRITER, "reader": protocols.BLOCK_READER}
        wrong = model(texts, BLOCK, messages=4, without=fence)
        assert wrong is not None
        assert "never goes on" in wrong.what

    @pytest.mark.parametrize("fence", ["SLEEP", "ROOM"])
    def test_fences_that_a_futex_brings_itself(self, fence: str) -> None:
        """Before it compares the word, the kernel lets all stores reach memory. (With doorbells it does not,
        see below; nor does the C library promise it, so the ring has these fences everywhere.)
        """
        texts = {"writer": protocols.BLOCK_WRITER, "reader": protocols.BLOCK_READER}
        wrong = model(texts, BLOCK, messages=4, without=fence)
        assert not wrong, explain(wrong)

    @pytest.mark.parametrize("fence", ["PUBLISH", "SLEEP", "ROOM", "COMMIT"])
    def test_a_missing_fence_of_doorbells(self, fence: str) -> None:
        texts = {"writer": protocols.BELL_WRITER, "reader": protocols.BELL_READER}
        wrong = model(texts, f"{BLOCK} BELL ROOMBELL", messages=4, without=fence)
        assert wrong is not None
        assert "never goes on" in wrong.what

    @pytest.mark.parametrize("line", ["ANNOUNCE", "PUBLISH", "NEWS"])
    def test_attaching_without(self, line: str) -> None:
        texts = {
            "core": protocols.ATTACH_CORE,
            "writer": protocols.ATTACH_WRITER,
            "reader": protocols.ATTACH_READER,
        }
        assert model(texts, ATTACH, messages=3, without=line) is not None

    @pytest.mark.parametrize(
        "texts",
        [
            {"writer": protocols.BLOCK_WRITER, "reader": protocols.COMMIT_BEFORE_COPY},
            {"writer": protocols.TAIL_BEFORE_RECORD, "reader": protocols.BLOCK_READER},
        ],
        ids=["commit before copy", "tail before record"],
    )
    def test_a_torn_message(self, texts: dict[str, str]) -> None:
        wrong = model(texts, BLOCK, messages=4)
        assert wrong is not None
        assert "check" in wrong.what

    def test_a_reader_rung_once_for_each_sleep(self) -> None:
        texts = {"writer": protocols.RUNG_ONCE, "reader": protocols.BLOCK_READER}
        wrong = model(texts, BLOCK, messages=4)
        assert wrong is not None
        assert "reader never goes on" in wrong.what

    def test_a_reader_that_is_not_waited_for_until_it_has_begun(self) -> None:
        texts = {"core": protocols.ATTACH_CORE, "writer": protocols.NO_PIN, "reader": protocols.ATTACH_READER}
        wrong = model(texts, ATTACH, messages=3)
        assert wrong is not None
        assert "check a == seen" in wrong.what

    @pytest.mark.parametrize(
        ("writer", "without", "is_pso"),
        [
            (protocols.OLDEST_AFTER_RECORD, "", False),
            (protocols.DROP_WRITER, "OVERRUN", False),
            (protocols.DROP_WRITER, "OLDEST", False),
            (protocols.DROP_WRITER, "RELEASE", True),
        ],
        ids=["oldest after the record", "no look at oldest", "no oldest", "no release fence"],
    )
    def test_lapping(self, writer: str, without: str, is_pso: bool) -> None:
        texts = {"writer": writer, "reader": protocols.DROP_READER}
        wrong = model(texts, "TAIL OLDEST", messages=5, without=without, is_pso=is_pso)
        assert wrong is not None
        assert "check a == seen" in wrong.what

    @pytest.mark.parametrize("line", ["OVERRUN", "PUBLISH"])
    def test_history_without(self, line: str) -> None:
        texts = {
            "core": protocols.LATE_CORE,
            "writer": protocols.HISTORY_WRITER,
            "reader": protocols.HISTORY_READER,
        }
        assert model(texts, f"{ATTACH} OLDEST HISTORY", messages=3, reach=2, without=line) is not None


class TestMachine:
    """That the machine itself tells right from wrong."""

    DEKKER = "X := 1\nfence #F\ny <- Y\nend y", "Y := 1\nfence #F\nx <- X\nend x"

    def dekker(self, without: str) -> Wrong | None:
        programs = [
            compile_program(name, text, without=without) for name, text in zip("ab", self.DEKKER, strict=True)
        ]

        def at_end(memory: Memory, registers: list[dict[str, int]]) -> str:
            return "both missed" if registers[0]["y"] == registers[1]["x"] == 0 else ""

        return Model(programs, {"X": 0, "Y": 0}, at_end=at_end).explore()[1]

    def test_store_buffers(self) -> None:
        assert self.dekker("") is None
        wrong = self.dekker("F")
        assert wrong is not None
        assert wrong.what == "both missed"
        assert any("reaches memory" in line for line in wrong.trace)

    @pytest.mark.parametrize(
        ("is_pso", "order", "is_wrong"), [(False, "", False), (True, "", True), (True, "order stores", False)]
    )
    def test_message_passing(self, is_pso: bool, order: str, is_wrong: bool) -> None:
        writer = compile_program("writer", f"X := 1\n{order}\nFLAG := 1\nend")
        reader = compile_program(
            "reader", "flag <- FLAG\nif flag == 0 goto done\nx <- X\ncheck x == 1\ndone:\nend"
        )
        _, wrong = Model([writer, reader], {"X": 0, "FLAG": 0}, is_pso=is_pso).explore()
        assert (wrong is not None) is is_wrong

    def test_an_early_wake_is_in_vain_and_a_changed_word_is_not(self) -> None:
        waker = compile_program("waker", "wake W\nend")
        sleeper = compile_program("sleeper", "sleep W while 0\nend")
        _, wrong = Model([waker, sleeper], {"W": 0}).explore()
        assert wrong is not None
        assert wrong.what == "sleeper never goes on: sleep W while 0"
        waker = compile_program("waker", "W := 1\nwake W\nend")
        assert Model([waker, sleeper], {"W": 0}).explore()[1] is None

    def test_bad_programs(self) -> None:
        with pytest.raises(ValueError, match="not an instruction"):
            compile_program("x", "jump somewhere")
        with pytest.raises(ValueError, match="no line tagged"):
            compile_program("x", "end", without="TAG")
