"""How much a gateway may send ahead: the client's half of a subscription's credit. Sans-I/O.

Theory of operation
    A message of a subscription is, at each moment, in one of three places that count: it may yet be sent
    (credit that the gateway was given and has not used, or that is on its way there), it is on its way here
    or waits in the stream (the gateway has spent its credit, and it has not been taken off the stream), or it
    is held for the program (in the inbox). The first two cannot be told apart from here, and need not be:
    together they are ``outstanding``, what was given less what was taken off the stream. The window bounds
    all three together::

        given to the gateway --- outstanding ---> taken off the stream --- held ---> taken by the program

    ``outstanding`` belongs to one stream, and dies with it: what a broken connection carried is lost with
    what it had been given. ``held`` belongs to the subscription, and outlives connections. So a new stream
    begins with what the held ones leave of the window, and *is told how many are held*, never how many were
    taken: a program takes messages also while there is no stream that could count them (between two
    connections, or while the new one subscribes), and what nobody counted would be missing from the window
    for ever. Once the missing part reached half of the window nothing would be given any more, and the
    subscription would stand still. A level cannot lose what an edge can.

Invariants
    ``outstanding >= 0``. ``outstanding + held <= window``, but for a stream that begins while the window is
    taken up: it is given 1, since no credit at all means "as the gateway likes".
    No standstill: when nothing is held, more than half of the window is outstanding, or that is so after
    :meth:`due`.

Not here: whose turn it is to say how many are held (``following``); the gateway's half
(``gateways/zeromq/rpc``: ``Call.credit``).
"""

from __future__ import annotations

from towpath.errors import ProtocolViolation


class Credit:
    """One stream's credit.

    Args:
        window: how many messages may be outstanding or held, at least 1.
        held: how many are held from before.

    Attributes:
        outstanding: what the gateway was given, less what came. At first: what to give it with the request.
    """

    def __init__(self, window: int, held: int) -> None:
        self._window = window
        self._step = max(window // 2, 1)
        self.outstanding = max(window - held, 1)

    def arrived(self, count: int) -> None:
        """Note messages that were taken off the stream.

        Raises:
            ProtocolViolation: there are more than the gateway was given credit for.
        """
        if count > self.outstanding:
            raise ProtocolViolation(f"{count} messages came on credit for {self.outstanding}")
        self.outstanding -= count

    def due(self, held: int) -> int:
        """Return how much more to give now; it counts as given.

        Args:
            held: how many messages are held at this moment.
        """
        free = self._window - self.outstanding - held
        if free < self._step:  # little by little would be a frame for each message
            return 0
        self.outstanding += free
        return free
