"""The gateways: each a process of its own, ``python -m towpath_broker.gateways.NAME``, and a client of the
daemon like any other."""
