"""Where the ring's headers are, and what they say of their steps."""

from __future__ import annotations

import re
from pathlib import Path

HEADERS = sorted((Path(__file__).parents[2] / "clients" / "c").glob("towpath_ring*.h"))
STEP_USE = re.compile(r"TPR_(?:STORE|COPY)\((\w+),")


def steps_listed() -> list[str]:
    """The names in TOWPATH_RING_STEPS, in its order."""
    [steps] = [path.read_text() for path in HEADERS if path.name == "towpath_ring_steps.h"]
    listing = steps[steps.index("#define TOWPATH_RING_STEPS(X)") :].split("\n\n", 1)[0]
    return re.findall(r"^\s+X\((\w+)\)", listing, re.MULTILINE)
