"""serve_patient.py serve ...: the daemon with cores of ``patient_core``, started again without pauses."""

from __future__ import annotations

import sys

from towpath.cli import main
from towpath_broker import core_keeper
from towpath_broker.host import children

children.BACKOFF_LAST_S = children.BACKOFF_FIRST_S  # type: ignore[misc]
core_keeper.CORE_MODULE = "tests.client.programs.patient_core"  # type: ignore[misc]
sys.exit(main())
