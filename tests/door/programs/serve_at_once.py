"""serve_at_once.py serve ...: the daemon, whose core is started again without a growing pause; for tests that
kill it many times in a row."""

from __future__ import annotations

import sys

from towpath.cli import main
from towpath_broker.host import children

children.BACKOFF_LAST_S = children.BACKOFF_FIRST_S  # type: ignore[misc]
sys.exit(main())
