"""What this version does not do yet. What it does, over each carrier: tests/conformance/clients."""

from __future__ import annotations

from typing import Any

import pytest

from towpath import errors


@pytest.mark.parametrize("options", [{"kind": "queue"}, {"durable": True}])
def test_what_is_not_built_yet_is_said_plainly(client: Any, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(errors.NotSupported):
        client.declare(name, **options)
