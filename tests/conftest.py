"""What holds for every test: no daemon but its own, and the same examples in every run.

Not here: fixtures, which belong to the folder that needs them.
"""

from __future__ import annotations

import os

from hypothesis import settings

# Before anything imports towpath, and inherited by what tests start: whoever runs the suite may have a
# daemon of their own, which no test may find.
for name in [name for name in os.environ if name.startswith("TOWPATH_")]:
    del os.environ[name]

# `deadline=None`: how long an example takes says something about the machine, not about the code.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile("repeatable")
