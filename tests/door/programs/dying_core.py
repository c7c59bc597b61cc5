"""The core process with another build of the ring, which kills it at a moment of its own.

Each core takes the next moment from the file that ``TOWPATH_MOMENTS`` names, a line each; when there is none
left it lives. ``TOWPATH_RING_BUILD`` is the extension.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import towpath


def next_moment(moments: Path) -> str:
    """Take the first line out of the file."""
    first, _, rest = moments.read_text().partition("\n")
    moments.write_text(rest)
    return first


def load_ring(extension: str) -> None:
    """Have this build of ``towpath._ring`` found by everybody who imports it."""
    loader = importlib.machinery.ExtensionFileLoader("towpath._ring", extension)
    spec = importlib.util.spec_from_loader("towpath._ring", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules["towpath._ring"] = module
    towpath._ring = module


if __name__ == "__main__":
    assert "towpath._ring" not in sys.modules
    moment = next_moment(Path(os.environ["TOWPATH_MOMENTS"]))
    if moment:
        os.environ["TOWPATH_KILL_AT"] = moment
    load_ring(os.environ["TOWPATH_RING_BUILD"])

    from towpath_broker import daemon

    sys.exit(daemon.main())
