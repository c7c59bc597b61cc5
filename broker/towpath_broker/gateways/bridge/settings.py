"""The bridge's table of the configuration. It has no keys: all that can be set belongs to a binding."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BridgeSettings:
    """Settings of the bridge as a whole."""
