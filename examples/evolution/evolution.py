"""`make evolution`: one producer and one consumer that never change, while their conversation moves from an
anonymous pipe to gRPC, step by step, without a line lost.

Starts two daemons in a temporary directory and ends them again; nothing else on the machine is touched. Exits
with 0 only if every line came once, in order. `--page FILE` writes docs/evolution.md from this very run;
`--short` measures less.

Reading order: `producer.py` and `consumer.py`, which are all there is to run; `steps.py`, what is bound;
`story` below, how the conversation moves; `figures.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from banks import CHANNEL, PATIENCE_S, Bank, bank, wait_for
from figures import Figures, Ledger, Pattern, table
from page import page
from steps import Step, all_steps

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable
CATCH_UP_S = 15
FEW = 50
"""With so few lines in the queue, none waits: those are being handed over."""
FULL, SHORT = (Pattern(200, 400), 5), (Pattern(50, 100), 1)
"""What the producer writes, and how many whole cycles of it each step is measured for."""


def before_towpath(pattern: Pattern, cycles: int, root: Path) -> Figures:
    """The two programs as everybody begins: one pipe, made by the shell."""
    ledger = Ledger(root / "before.ledger")
    producer, consumer = programs(pattern, ledger)
    print(f"   $ {shown(producer)} | {shown(consumer)}")
    with (
        subprocess.Popen(producer, stdout=subprocess.PIPE) as writer,
        subprocess.Popen(consumer, stdin=writer.stdout) as reader,
    ):
        wait_for(lambda: ledger.count() > (cycles + 1) * pattern.cycle, "the programs")
        writer.terminate()
        reader.wait(PATIENCE_S)
    if complaint := ledger.complaint():
        raise RuntimeError(complaint)
    return ledger.figures("a shell's pipe, no Towpath", pattern, 0, 0, ledger.count())


def programs(pattern: Pattern, ledger: Ledger) -> tuple[list[str], list[str]]:
    """The commands of the producer and of the consumer."""
    producer = [PYTHON, str(HERE / "producer.py"), str(pattern.steady), str(pattern.burst)]
    return producer, [PYTHON, str(HERE / "consumer.py"), str(ledger.path)]


def shown(command: list[str]) -> str:
    """A command, with names in place of paths."""
    return " ".join(["python", *(Path(word).name for word in command[1:])])


def story(left: Bank, right: Bank, root: Path, pattern: Pattern, cycles: int) -> list[Figures]:
    """Start both programs, move their conversation step by step, and end them.

    Raises:
        RuntimeError: a line is missing, came twice or in the wrong place; or something did not happen.
    """
    ledger = Ledger(root / "ledger")
    producer, consumer = programs(pattern, ledger)
    print(f"   right$ towpath run --in {CHANNEL} -- {shown(consumer)}")
    print(f"   left$  towpath run --out {CHANNEL} -- {shown(producer)}")
    reader = right.start("run", "--in", CHANNEL, "--", *consumer)
    writer = left.start("run", "--out", CHANNEL, "--", *producer)
    marks: list[tuple[Step, int, int, int]] = []
    try:
        with contextlib.ExitStack() as needed:
            before: Step | None = None
            for number, step in enumerate(all_steps(left, root), 1):
                print(f"\n{number}. {step.name}{step.needs_text}")
                needed.enter_context(step.needs())
                if before is not None:
                    take_down(before, left, right)
                begin = ledger.count()
                for bank_name, words in step.commands():
                    (left if bank_name == "left" else right).command(*words)
                measured = catch_up(left, ledger, begin)
                wait_cycles(ledger, pattern, measured, cycles)
                marks.append((step, begin, measured, ledger.count()))
                print(f"   {ledger.count() - begin:,} lines have come, the last is {ledger.count():,}")
                before = step
            print("\nThe producer is told to end, and the consumer reads what is left.")
            writer.terminate()  # passed on to the producer, which writes its last line
            writer.wait(PATIENCE_S)
            reader.wait(PATIENCE_S)
            take_down(step, left, right)
    finally:
        for process in (writer, reader):
            if process.poll() is None:
                process.kill()
            process.wait()
    if complaint := ledger.complaint():
        raise RuntimeError(complaint)
    # The last line is the producer's word that it has ended.
    print(f"The consumer has {ledger.count() - 1:,} lines: all that the producer wrote, once each, in order.")
    return [ledger.figures(step.name, pattern, *mark) for step, *mark in marks]


def wait_cycles(ledger: Ledger, pattern: Pattern, measured: int, cycles: int) -> None:
    """Wait until so many whole cycles of the producer's have come."""
    end = pattern.first_of_cycle(measured) + cycles * pattern.cycle
    wait_for(lambda: ledger.count() >= end, "the producer's lines")


def catch_up(left: Bank, ledger: Ledger, begin: int) -> int:
    """Wait until lines come and those that had to wait have come; return how many there are then."""

    def is_short() -> bool:
        contents = left.client.channel_info(CHANNEL).contents
        return contents is not None and contents.messages < FEW and ledger.count() > begin

    # A step that is slower than the producer is measured as it is.
    with contextlib.suppress(TimeoutError):
        wait_for(is_short, "what waits on the left bank", CATCH_UP_S)
    return ledger.count()


def take_down(step: Step, left: Bank, right: Bank) -> None:
    """End a step. The queue on the left bank holds what comes from now on; what is under way arrives."""
    if step.left:
        left.command("unbind", CHANNEL, step.left)
        wait_for(step.is_empty, f"{step.name}: what is in it")
    right.command("unbind", CHANNEL, step.right)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else "")
    parser.add_argument("--short", action="store_true", help="measure less")
    parser.add_argument("--page", metavar="FILE", type=Path, help="write the page, with this run's figures")
    arguments = parser.parse_args()
    pattern, cycles = SHORT if arguments.short else FULL
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="evolution-") as directory:
        root = Path(directory)
        print("Before Towpath. A producer writes lines to its standard output, a consumer reads them.")
        figures = [before_towpath(pattern, cycles, root)]
        print(
            "\nNow with Towpath: a daemon on the left bank of the canal, with the producer, and one on the\n"
            "right bank, with the consumer. Each has a queue, `orders`. The two programs are started once:"
        )
        with (
            bank("left", root, has_gateways=True) as left,
            bank("right", root, has_gateways=False) as right,
        ):
            steps = all_steps(left, root)
            figures += story(left, right, root, pattern, cycles)
            text = page(steps, figures, root, pattern.steady, pattern.burst) if arguments.page else ""
    print("What each step carried; a line's delay is from the producer's write to the consumer's read:\n")
    print(aligned(table(figures)))
    print(f"\n{time.monotonic() - started:.0f} s. What each step buys and costs: docs/evolution.md")
    if arguments.page:
        arguments.page.write_text(text)
    return 0


def aligned(rows: list[list[str]]) -> str:
    """Cells in columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(f"   {line}" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
