"""Fuzz one target with atheris: ``python -m tests.fuzz.fuzz_one TARGET [OPTION ...] [DIRECTORY ...]``, the
options being libFuzzer's.

Not here: the targets; the run without atheris (``test_corpus``).
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["towpath", "towpath_broker", "tests.fuzz.targets"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


main()
