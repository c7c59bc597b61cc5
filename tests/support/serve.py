"""serve.py serve ...: the daemon, whose core and gateways are started again without growing pauses, as tests
kill them many times in a row; and which lets them take as long to end as a busy machine needs.

``TOWPATH_TEST_CORE`` names a module that is the core process instead.
"""

from __future__ import annotations

import os
import sys

from towpath.cli import main
from towpath_broker import core_keeper, gateway_keeper, supervisor
from towpath_broker.host import children

PATIENCE_S = 30.0

supervisor.CORE_STOP_S = gateway_keeper.STOP_SECONDS = PATIENCE_S  # type: ignore[misc]
children.BACKOFF_LAST_S = children.BACKOFF_FIRST_S  # type: ignore[misc]
core_keeper.CORE_MODULE = os.environ.get("TOWPATH_TEST_CORE", core_keeper.CORE_MODULE)  # type: ignore[misc]
sys.exit(main())
