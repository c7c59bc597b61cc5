"""``towpath serve``: arguments, configuration, and the errors that a person sees. The work is the
supervisor's.

Not here: the other verbs (``towpath.cli``), which never import the daemon.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from towpath.errors import InvalidConfiguration, TowpathError

from .settings import DaemonSettings, Settings, load_settings, table_classes
from .settings_texts import config_toml, example_toml, manual_table
from .supervisor import check_packages, serve
from .tables import add_flags, flags_table, settings_of, unknown_key

CONFIG_ENVIRONMENT: Final = "TOWPATH_CONFIG"
_INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``towpath serve``."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"read settings from this TOML file (default: ${CONFIG_ENVIRONMENT}, else none)",
    )
    parser.add_argument(
        "--set",
        metavar="TABLE.KEY=VALUE",
        action="append",
        default=[],
        help="set a key of [daemon], [limits], [lock_limits], [zeromq] or [grpc]; may be repeated",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    action.add_argument(
        "--print-config", action="store_true", help="print the settings in effect as TOML and exit"
    )
    action.add_argument(
        "--print-example", action="store_true", help="print every setting with its default and exit"
    )
    action.add_argument(
        "--print-manual", action="store_true", help="print the table of settings (Markdown) and exit"
    )
    add_flags(parser.add_argument_group("settings of [daemon]"), DaemonSettings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``towpath serve`` with these arguments; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="towpath serve",
        description="Run the daemon in the foreground.",
        epilog="example: towpath serve --config towpath.toml --set zeromq.sub=tcp://127.0.0.1:0",
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except TowpathError as error:
        hint = error.hint
        if arguments.check_config and isinstance(error, InvalidConfiguration) and hint == error.row.hint:
            # The usual hint is to do just this.
            hint = "towpath serve --print-example shows every setting with its range and default"
        print(f"towpath: {error.message}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
        return error.row.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED


def run(arguments: argparse.Namespace) -> int:
    """Do what the parsed arguments say.

    Raises:
        TowpathError: a wrong configuration, or the daemon cannot start.
    """
    if arguments.print_example:
        print(example_toml(), end="")
        return os.EX_OK
    if arguments.print_manual:
        print(manual_table(), end="")
        return os.EX_OK
    config = arguments.config or os.environ.get(CONFIG_ENVIRONMENT)
    flags = _flags(arguments)

    def load() -> Settings:
        return load_settings(Path(config).absolute() if config else None, environment=os.environ, flags=flags)

    if arguments.print_config:
        print(config_toml(load()), end="")
        return os.EX_OK
    if arguments.check_config:
        settings = load()
        check_packages(settings)
        check_registry(settings)
        print(
            f"{config or 'no file'}: fine; channels: {len(settings.channels)}, "
            f"bindings: {len(settings.bindings)}, gateways: {', '.join(settings.gateways)}"
        )
        return os.EX_OK
    return serve(load, os.environ)


def check_registry(settings: Settings) -> None:
    """Try the configured channels and bindings on a registry of its own, as a first start would.

    Raises:
        InvalidConfiguration: what the daemon would only warn of, because it runs all the same.
    """
    # Not at the top: the supervisor, which is in this process too, must not carry the core.
    from .configuration import commands_for
    from .core.commands import ChannelOptions
    from .core.effects import Warn
    from .core.machine import Machine

    machine = Machine(settings.limits, ChannelOptions(ring_bytes=settings.daemon.ring_bytes))
    machine.apply(machine.start_command(), 0)
    for command in commands_for(settings, machine.durable_state()):
        for effect in machine.apply(command, 0):
            if isinstance(effect, Warn):
                raise InvalidConfiguration(f"{settings.config_file}: {effect.message}", hint="")


def _flags(arguments: argparse.Namespace) -> Mapping[str, Mapping[str, Any]]:
    """Return what the command line sets, by table and key.

    Raises:
        InvalidConfiguration: ``--set`` names no key, or a value is not allowed.
    """
    classes = table_classes()
    tables: dict[str, dict[str, Any]] = {}
    for assignment in arguments.set:
        place, equals, text = assignment.partition("=")
        table, dot, key = place.partition(".")
        if not (equals and dot):
            raise InvalidConfiguration(
                f"--set {assignment}: not TABLE.KEY=VALUE",
                hint="for example: --set zeromq.sub=tcp://127.0.0.1:0",
            )
        if table not in classes:
            raise unknown_key("--set:", table, classes)
        known = {item.name: item for item in settings_of(classes[table])}
        if key not in known:
            raise unknown_key(f"--set: [{table}]", key, known)
        tables.setdefault(table, {})[key] = known[key].from_text(text, f"--set: [{table}]")
    tables["daemon"] = {**tables.get("daemon", {}), **flags_table(DaemonSettings, arguments)}
    return {table: values for table, values in tables.items() if values}


if __name__ == "__main__":
    sys.exit(main())
