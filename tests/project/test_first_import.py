"""Any module may be the first one that a program imports: there are no circles of imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"towpath": ROOT / "clients/python", "towpath_broker": ROOT / "broker"}

# Each in a process of its own, forked from one that has what others wrote already, and what is generated, so
# that it is quick.
PROGRAM = """
import asyncio, importlib, os, pkgutil, sqlite3, sys, traceback
import google.protobuf.descriptor_pb2, grpc, zmq.asyncio
import towpath.v1

for module in pkgutil.iter_modules(towpath.v1.__path__):
    importlib.import_module(f"towpath.v1.{module.name}")
ours = {name for name in sys.modules if name.startswith("towpath") and not name.startswith("towpath.v1")}
assert ours == {"towpath", "towpath._version"}, ours
for name in sys.stdin.read().split():
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException:
            print(name, traceback.format_exc(), sep=": ", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def modules() -> list[str]:
    return [
        ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        for package, folder in PACKAGES.items()
        for file in sorted((folder / package).rglob("*.py"))
        if file.name != "__main__.py"
    ]


def test_each_module_can_be_imported_first() -> None:
    names = modules()
    assert len(names) > 200
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(names),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert run.stdout == ""
