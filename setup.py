"""The part of the build that pyproject.toml cannot say: the optional C extensions, `towpath._ring` and the
bridge's `_native`.

Theory of operation: every C file of an extension is found by pattern, so that the extension may be split
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
BRIDGE = Path("broker/towpath_broker/gateways/bridge")
HEADERS = Path("clients/c")
CHOICES = ("auto", "required", "off")


def extensions() -> list[Extension]:
    """Describe the extensions, or nothing where they are switched off or this tree has no source for them."""
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
        ),
        Extension(
            "towpath_broker.gateways.bridge._native",
            sources=sorted(str(path) for path in BRIDGE.glob("_native*.c")),
            depends=[str(BRIDGE / "_native.h"), str(PACKAGE / "_ring_taker.h")],
            include_dirs=[str(BRIDGE), str(PACKAGE)],
            define_macros=[("_GNU_SOURCE", None)],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
            optional=choice == "auto",
        ),
    ]


setup(ext_modules=extensions())
