"""The ``zeromq`` gateway: channels for any program that can open a ZeroMQ socket, with no Towpath code in it.

Three endpoints, one module each:

``sub``     XPUB, for ``SUB`` peers: ``[channel, payload, meta]`` out.        subscribers.py
``push``    PULL, for ``PUSH`` peers: ``[channel, payload(, headers)]`` in.   pushes.py
``rpc``     ROUTER, for ``DEALER`` and ``REQ`` peers: protobuf ``Frame``.     calls.py, its rules in rpc.py

Reading order: ``settings`` (every bound), ``messages`` (what travels), ``endpoint`` (a socket on the event
loop), ``prefixes`` and ``subscribers``, ``outlets`` and ``pushes``, ``rpc``, ``registry_feed`` and ``calls``,
``gateway``.

Counters, as ``towpath status`` shows them:

``messages_in``, ``messages_out``   into channels; out of them (by ``sub`` once for all its subscribers)
``push_refused_REASON``             parts, name, headers, channel, size, stalled, other (pushes.py)
``sub_overruns``                    how often a subscriber was full for too long and began to lose messages
``sub_refused``, ``sub_ignored``    subscriptions beyond a limit; messages that a subscriber sent
``rpc_calls``, ``rpc_violations``   calls begun; frames that break the protocol, each answered by an error
``rpc_answers_dropped``             of those errors: not sent, because the peer does not read or is gone
``rpc_slow_peers``                  peers given up because they did not read an answer

Not here: who may connect. Every endpoint listens on loopback or a UNIX socket only; CURVE comes later.
"""

from __future__ import annotations
