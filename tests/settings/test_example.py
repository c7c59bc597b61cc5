"""What is shipped is derived from the dataclasses, and no older than they are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from towpath.model import STALL_MS_DEFAULT
from towpath_broker.core.commands import ChannelOptions
from towpath_broker.settings import load_settings, table_classes
from towpath_broker.settings_texts import example_toml, manual_table
from towpath_broker.tables import settings_of

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "towpath.toml"
MANUAL = ROOT / "deploy" / "configuration.md"


def uncommented(text: str) -> str:
    """The example with every key and table switched on; prose keeps its `# `."""
    return re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE)


def test_the_example_as_shipped_is_the_defaults() -> None:
    as_shipped = load_settings(EXAMPLE, environment={})
    default = load_settings(environment={})
    assert (as_shipped.daemon, as_shipped.limits, as_shipped.gateways) == (
        default.daemon,
        default.limits,
        default.gateways,
    )
    assert as_shipped.channels == {}
    assert as_shipped.bindings == ()


def test_every_key_of_the_example_has_its_default(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(uncommented(EXAMPLE.read_text()))
    switched_on = load_settings(tmp_path / "x.toml", environment={})
    default = load_settings(environment={})
    assert (switched_on.daemon, switched_on.limits, switched_on.gateways) == (
        default.daemon,
        default.limits,
        default.gateways,
    )
    assert list(switched_on.channels) == ["plant.line1.temp"]
    assert switched_on.bindings[0].url == "fifo:/run/plant/temp"


def test_the_example_has_every_key() -> None:
    document = tomllib.loads(uncommented(EXAMPLE.read_text()))
    for table, cls in table_classes().items():
        assert list(document[table]) == [item.name for item in settings_of(cls)]


def test_clients_know_the_defaults() -> None:
    assert ChannelOptions().stall_ms_max == STALL_MS_DEFAULT


def test_example_and_manual_are_not_stale() -> None:
    how = "make them again: towpath serve --print-example | --print-manual"
    assert EXAMPLE.read_text() == example_toml(), how
    assert MANUAL.read_text() == manual_table(), how


def test_every_key_says_what_it_is() -> None:
    for table, cls in table_classes().items():
        for item in settings_of(cls):
            assert len(item.help) > 5, f"[{table}] {item.name}"
            assert max(map(len, example_toml().splitlines())) <= 110
