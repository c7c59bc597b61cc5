"""docs/evolution.md, made from a run: the commands and words of `steps.py`, and the figures."""

from __future__ import annotations

import os
import platform
import re
import shlex
from pathlib import Path
from textwrap import fill

from figures import Figures, table
from steps import Step

_BEGIN = """\
# The evolution of a conversation

One producer writes lines to its standard output, one consumer reads lines from its standard input. Neither
is ever changed or restarted. What changes is what carries the lines from one to the other, as the needs grow:
from a pipe to another machine. With raw mechanisms each of these moves means writing both programs anew; here
each is one `towpath bind` (one on each bank, where what comes out on the left must go in on the right).

`make evolution` does all of this before your eyes, in about a minute, with daemons of its own. This page is
written by `examples/evolution/evolution.py --page docs/evolution.md`, so its commands are those that ran, and
its figures those that were measured. The raw mechanisms themselves, a screen of Python each, are in
[mechanisms.md](mechanisms.md); which one suits you is measured by `towpath advise`.

```text
    producer                                                                consumer
       | standard output                                      standard input   ^
       v                                                                       |
  left bank: daemon, queue `orders`  ---- the step of the day ---->  right bank: daemon, queue `orders`
```

The programs are started once:

```sh
right$ towpath run --in orders -- python consumer.py
left$  towpath run --out orders -- python producer.py
```

How the conversation moves without losing a line: `towpath unbind` ends the old step; from then on the left
bank's queue holds what the producer goes on writing. What was under way arrives, then the new step is bound,
and the queue flows on. A message leaves a queue only when it was handed over.
"""

_FIGURES = """\
## What was measured

The producer writes {steady} lines one by one, 4 ms apart, then {burst} at once, and so on. `burst` is the
rate at which those {burst} came through, the whole way: two pipes, both daemons' queues, and the step between
them. `p50` and `p99` are how long a steady line took, from the producer's write to the consumer's read.
`pause` is how long nothing came while the conversation moved: most of it is the time that commands take to
start. The first row is the two programs alone.
"""

_END = """\
For small lines, what is carried in batches (pipe, FIFO, ZeroMQ, gRPC) is far ahead of what is handed over
message by message (the message queue, the region of shared memory). Next to the bare pipe all of them are
slow: that is the price of queues that keep their promises, on both banks, and it is why programs that want
speed use the library, which shares memory directly. But a step is seldom chosen for its speed. Each makes
something possible that the one before did not, and since moving is one command, nothing has to be decided
early.
"""


def page(steps: list[Step], figures: list[Figures], root: Path, steady: int, burst: int) -> str:
    """The page's text.

    Args:
        root: the run's directory, which the page calls /tmp/evolution.
        steady, burst: what the producer writes.
    """
    parts = [_BEGIN]
    for number, step in enumerate(steps, 1):
        commands = "\n".join(f"{bank + '$':<7}towpath {shlex.join(words)}" for bank, words in step.commands())
        parts.append(f"## {number}. {step.name}\n\n```sh\n{_tidied(commands, root)}\n```\n")
        parts.append(f"{fill(f'*Buys*: {step.buys}', 106)}\n\n{fill(f'*Costs*: {step.costs}', 106)}\n")
    parts.append(_FIGURES.format(steady=steady, burst=burst))
    headings, *rows = table(figures)
    parts.append(
        "\n".join(
            [
                f"| {' | '.join(headings)} |",
                f"|---|{'---:|' * (len(headings) - 1)}",
                *(f"| {' | '.join(row)} |" for row in rows),
            ]
        )
        + "\n"
    )
    parts.append(
        f"Measured with {os.cpu_count()} cores, Linux {'.'.join(platform.release().split('.')[:2])}, "
        f"Python {platform.python_version()}, while the machine had other work: what counts is the order of\n"
        "magnitude.\n"
    )
    return "\n".join([*parts, _END])


def _tidied(commands: str, root: Path) -> str:
    """The commands with the names that a reader would choose."""
    commands = commands.replace(str(root), "/tmp/evolution").replace(f"/towpath-{root.name}", "/orders")
    commands = re.sub(r"(zmq://127\.0\.0\.1):[0-9]+", r"\1:5558", commands)
    return re.sub(r"(grpc://127\.0\.0\.1):[0-9]+", r"\1:50551", commands)
