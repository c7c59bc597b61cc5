"""serve.py serve ...: the daemon, whose core and gateways are started again without growing pauses, as tests
kill them many times in a row.
"""

from __future__ import annotations

import sys

from towpath.cli import main
from towpath_broker.host import children

children.BACKOFF_LAST_S = children.BACKOFF_FIRST_S  # type: ignore[misc]
sys.exit(main())
