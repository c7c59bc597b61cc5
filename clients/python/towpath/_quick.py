"""``QuickPublisher`` and ``QuickSubscription`` of the C extension; without it, empty bases in their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from towpath._ring import QuickPublisher as QuickPublisher
    from towpath._ring import QuickSubscription as QuickSubscription
else:
    try:
        from towpath._ring import QuickPublisher, QuickSubscription
    except ImportError:

        class QuickPublisher:
            """Nobody publishes through shared memory here."""

        class QuickSubscription:
            """Nor receives."""
