"""State: a value that everybody sees, with a version. The blackboard.

Theory of operation
    The core keeps the value, and is asked in frames, on every carrier (``requests``). On the daemon's own
    host a reader also maps the page that the core writes after each change (``clients/c/towpath_value.h``),
    and then reads
    without asking: 50 nanoseconds instead of a call. ``blocking`` and ``aio`` are the two ways of waiting.

Invariants
    Versions grow. Who has set a value sees it, or a later one, in the page: the page is written before the
    answer is sent. A page counts only on the connection that it was attached on; while there is no connection
    it shows what was there last, because nobody can change it then but by a core that this client has not
    heard of yet.

Not here: the rules (``towpath_broker.core.data.values``).
"""
