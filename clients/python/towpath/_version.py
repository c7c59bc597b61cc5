"""The library's version, in one place for code; a test compares it with the distribution's."""

from __future__ import annotations

__version__ = "0.1.0"
