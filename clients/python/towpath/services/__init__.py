"""Services: request and reply, the synchronous way of talking.

Theory of operation
    A caller sends each request to one server of the service, and waits for its reply. Where both are on this
    host, neither passes through the daemon: a caller has a ring that every server reads, a server has a ring
    for each caller that it answered, and what goes through them is a message whose headers begin with a small
    fixed *envelope* (``envelope``)::

        caller ──its ring──▶ all servers; the envelope names the one that it is for
        caller ◀──a ring for this caller alone── that server

    The core says who maps what, and when somebody died (``towpath_broker.core.roles``). From afar requests
    and replies are frames, and the gateway is the local caller or server.

    ``asking`` holds what a caller knows, ``answering`` what a server knows: both sans-I/O. ``caller`` and
    ``server`` wait for them in threads, ``aio_caller`` and ``aio_server`` on an event loop; ``remote`` and
    ``remote_blocking`` do the same from afar. ``api`` and ``aio_api`` are what programs see.

Invariants
    A request is handed to at most one server at a time, and, unless it is idempotent, to a second one only
    if the first said that it never began with it. Each request that a server takes is answered at most once
    (but for the parts of a stream), and each call ends: by its reply, an error, its deadline, or the end of
    its server.

Not here: the queue-like kinds that travel as frames (``towpath.queues``), the core's roles.
"""
