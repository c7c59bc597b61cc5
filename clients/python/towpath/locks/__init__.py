"""Locks: who may, and proof of it.

Theory of operation
    A client that uses locks has one *lock session*, opened with the first of them; what it holds is the
    session's and ends with it. ``session`` keeps it, over the connections that come and go, and knows each
    request that waits and each grant that is held, sans-I/O; ``requests`` has what is asked as calls;
    ``blocking`` and ``aio`` are the two ways of waiting. Nobody polls: a wait is a stream that ends when it
    is over.

    Each thread, and each task, is an *owner* of its own: deadlocks are found between owners, within one
    program too.

Invariants
    A guard says that it is valid only while the daemon cannot have given the lock to somebody else, as far as
    this program can know; proof for others is the token, which whoever is written to can check (``fence``).
    A request that is given up (a timeout, a cancelled task) is withdrawn, or given back if it was granted
    meanwhile: nothing stays held by nobody.

Not here: the rules (``towpath_broker.core.locks``).
"""
