"""The files of tests that take longest, the longest first: with `make test` they begin first.

What takes half a minute and begins last is waited for by processes that have nothing left to do. Roughly
right is right enough; `pytest --durations=50` tells, and tests/project tells when a file has gone.
"""

from __future__ import annotations

from typing import Final

LONGEST_FIRST: Final = (
    "tests/histories/test_histories.py",
    "tests/bench/test_smoke.py",
    "tests/ring/test_c.py",
    "tests/examples/test_evolution.py",
    "tests/project/test_distribution.py",
    "tests/faults/test_failing_disk.py",
    "tests/project/test_first_import.py",
    "tests/docs/test_readme.py",
    "tests/faults/test_killed_core.py",
    "tests/door/test_kill_core_steps.py",
    "tests/services/test_processes.py",
    "tests/faults/test_lock_journal.py",
    "tests/property/test_own.py",
    "tests/property/test_machine.py",
    "tests/door/test_kill_core.py",
    "tests/supervisor/test_serve.py",
    "tests/door/test_two_users_kinds.py",
    "tests/zeromq/test_faults.py",
    "tests/ring/model/test_model.py",
    "tests/ring/model/test_loans.py",
    "tests/c_client/test_programs.py",
    "tests/conformance/clients/test_many.py",
    "tests/supervisor/test_systemd.py",
    "tests/grpc/test_many_locks.py",
    "tests/grpc/test_e2e_faults.py",
    "tests/ring/test_fuzz.py",
    "tests/ring/test_faults.py",
    "tests/bridge/test_matrix.py",
    "tests/bridge/test_joined_locks.py",
    "tests/advise/test_recipes.py",
    "tests/simulation/test_simulation.py",
    "tests/cli/test_lock.py",
    "tests/cli/test_advise.py",
    "tests/remote/test_locks.py",
    "tests/states/test_processes.py",
    "tests/lockpage/test_lock_page.py",
    "tests/bridge/test_kills.py",
    "tests/client/test_queue_faults.py",
    "tests/bridge/test_bad_input.py",
    "tests/remote/test_reconnection.py",
    "tests/container/test_containers.py",
)
