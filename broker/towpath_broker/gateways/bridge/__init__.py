"""The bridge: the gateway that hosts the adapters, and so joins channels to FIFOs and to commands on pipes.

Reading order: ``ports`` (what is asked of whom), ``bridge`` (the registry's bindings become runners),
``runner`` (one binding's life), ``carrier`` (the channel, as an adapter has it), ``making`` (from a URL to
its adapter), ``adapters/`` (one file per mechanism), ``inflow`` and ``outflow`` (bytes to messages and back,
with the account of both), ``messages`` (the same for mechanisms that keep messages apart), ``report`` (what
the daemon is told).

It is an ordinary client of the daemon and imports nothing of it.
"""
