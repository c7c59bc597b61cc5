"""Ways to keep deadlocks from coming about, one of which a lock space may choose.

``ordering`` refuses who takes locks out of order; ``banker`` lets a request wait while granting it could lead
to a deadlock; ``ages`` has wait-die and wound-wait, which let only the older (the younger) wait. No-wait and
timeout-only are single lines in ``acquiring``.
"""

from __future__ import annotations
