"""serve_mute.py serve ...: the daemon with cores of ``mute_core``, started anew without growing pauses."""

from __future__ import annotations

import sys

from towpath.cli import main
from towpath_broker import core_keeper
from towpath_broker.host import children

children.BACKOFF_LAST_S = children.BACKOFF_FIRST_S  # type: ignore[misc]
core_keeper.CORE_MODULE = "tests.client.programs.mute_core"  # type: ignore[misc]
sys.exit(main())
