"""The manual page is the one that the parsers and the error table make."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_manual_is_not_stale() -> None:
    spec = importlib.util.spec_from_file_location("generate_manual", ROOT / "tools" / "generate_manual.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    for path, text in generator.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: make man"
