"""The part of the build that pyproject.toml cannot say: the optional C extension `towpath._ring`.

Theory of operation: every C file of the extension is found by pattern, so that the extension may be split
without touching the build. `TOWPATH_EXTENSION` decides what a failure means: `auto` (the default) leaves
the extension out when it cannot be built, and what is installed is a purely remote client; `required` makes
the failure fatal, as development wants it; `off` does not try.

Not here: names, versions, dependencies (pyproject.toml); the headers' own tests (tests/ring).
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

PACKAGE = Path("clients/python/towpath")
HEADERS = Path("clients/c")
CHOICES = ("auto", "required", "off")


def ring_extensions() -> list[Extension]:
    """Describe the extension, or nothing where it is switched off or this tree has no source for it."""
    choice = os.environ.get("TOWPATH_EXTENSION", "auto")
    if choice not in CHOICES:
        raise SystemExit(f"TOWPATH_EXTENSION is {choice!r}; it must be one of {', '.join(CHOICES)}")
    sources = sorted(str(path) for path in (*PACKAGE.glob("_ringmodule.c"), *PACKAGE.glob("_ring_*.c")))
    if choice == "off" or not sources:
        return []
    headers = sorted(str(path) for path in (*HEADERS.glob("*.h"), *PACKAGE.glob("_ring*.h")))
    return [
        Extension(
            "towpath._ring",
            sources=sources,
            depends=headers,
            include_dirs=[str(HEADERS), str(PACKAGE)],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
            optional=choice == "auto",
        )
    ]


setup(ext_modules=ring_extensions())
