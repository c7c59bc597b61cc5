"""The ``zeromq`` gateway: channels for any program that can open a ZeroMQ socket, with no Towpath code in it.

Three endpoints, one module each:

``sub``     XPUB, for ``SUB`` peers: ``[channel, payload, meta]`` out.        subscribers.py
``push``    PULL, for ``PUSH`` peers: ``[channel, payload(, headers)]`` in.   pushes.py
``rpc``     ROUTER, for ``DEALER`` and ``REQ`` peers: protobuf ``Frame``.     calls.py, its rules in rpc.py

Reading order: ``settings`` (every bound), ``messages`` (what travels), ``endpoint`` (a socket on the event
loop), ``prefixes`` and ``subscribers``, ``outlets`` and ``pushes``, ``rpc``, ``registry_feed`` and ``calls``,
``gateway``.

Not here: who may connect. Every endpoint listens on loopback or a UNIX socket only; CURVE comes later.
"""

from __future__ import annotations
