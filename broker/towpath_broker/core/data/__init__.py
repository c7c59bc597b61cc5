"""The data plane's core: what is in queues, states and durable topics. Pure, as all of ``core``."""
