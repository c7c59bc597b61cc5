"""The store of the data plane: what is in queues, states and durable topics, on disk or in memory.

Not here: what rows mean to channels (``towpath_broker.core.data``), the journal of definitions (``journal``).
"""
