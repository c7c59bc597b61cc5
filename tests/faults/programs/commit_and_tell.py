"""Commits to a store, under the shim; after each commit its number is appended to a file beside: it was
acknowledged.

``commit_and_tell.py DIRECTORY COUNT LARGEST``
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.faults import work
from towpath_broker.store.sqlite import SqliteStore


def main() -> None:
    directory, count, largest = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = SqliteStore(directory / "store.sqlite")
    store.load()
    acknowledged = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    store.commit(work.opening())
    for number, size in enumerate(work.sizes(count, largest), 1):
        store.commit(work.commit(number, size))
        os.write(acknowledged, b"%d\n" % number)
        if number % 2:  # as the engine does where a publisher waits for each message
            store.prepare()
    store.close()


main()
