"""The settings: where each value comes from, what is refused and how it is said, and that they survive a
journey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.errors import InvalidConfiguration
from towpath_broker.core.locks.permissions import LockPermissions
from towpath_broker.settings import (
    CONFIG_BYTES_MAX,
    BindingSettings,
    ChannelSettings,
    DaemonSettings,
    Settings,
    load_settings,
)
from towpath_broker.settings_texts import config_toml


def load(
    tmp_path: Path,
    text: str = "",
    *,
    environment: dict[str, str] | None = None,
    flags: dict[str, dict[str, Any]] | None = None,
) -> Settings:
    file = tmp_path / "towpath.toml"
    file.write_text(text)
    return load_settings(file, environment=environment or {}, flags=flags)


def refusal(tmp_path: Path, text: str, **more: Any) -> InvalidConfiguration:
    with pytest.raises(InvalidConfiguration) as caught:
        load(tmp_path, text, **more)
    return caught.value


# ---- where a value comes from ------------------------------------------------------------------------------


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    text = "[limits]\nsessions_max = 7\nbindings_max = 7\nchannels_max = 7\n"
    environment = {"TOWPATH_LIMITS_SESSIONS_MAX": "8", "TOWPATH_LIMITS_BINDINGS_MAX": "8"}
    limits = load(tmp_path, text, environment=environment, flags={"limits": {"sessions_max": 9}}).limits
    assert (limits.sessions_max, limits.bindings_max, limits.channels_max) == (9, 8, 7)
    assert limits.watches_per_session_max == load_settings(environment={}).limits.watches_per_session_max


def test_every_table_at_once(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [daemon]
        runtime_dir = "/srv/run"
        admin_group = ""
        [zeromq]
        sub = "tcp://127.0.0.1:0"
        [channels.plain]
        [channels."plant.line1.temp"]
        kind = "topic"
        durable = false
        overflow = "block"
        ring_bytes = 65536
        [[bindings]]
        channel = "plant.line1.temp"
        url = "fifo:/run/plant/temp"
        direction = "in"
        framing = "fixed"
        frame_bytes = 128
        mode = "660"
        [[bindings]]
        channel = "plain"
        url = "pipe:vmstat 1"
        direction = "in"
        """,
    )
    assert settings.daemon == DaemonSettings(runtime_dir="/srv/run", admin_group="")
    assert settings.channels == {
        "plain": ChannelSettings(),
        "plant.line1.temp": ChannelSettings("topic", False, "block", 65_536),
    }
    assert settings.bindings == (
        BindingSettings(
            "plant.line1.temp",
            "fifo:/run/plant/temp",
            "in",
            {"framing": "fixed", "frame_bytes": "128", "mode": "0660"},
        ),
        BindingSettings("plain", "pipe:vmstat 1", "in"),
    )
    assert settings.gateways["zeromq"]["sub"] == "tcp://127.0.0.1:0"
    assert settings.gateways["zeromq"]["push"] == "tcp://127.0.0.1:5557"


def test_who_may_do_what_with_locks(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        """
        [lock_permissions.""]
        see = []
        [lock_permissions."plant.line1"]
        take = ["uid:1000", "grpc:*"]
        """,
    )
    assert settings.lock_permissions == {
        "": LockPermissions(see=()),
        "plant.line1": LockPermissions(take=("uid:1000", "grpc:*")),
    }
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("text", "environment", "started", "stated"),
    [
        ("", {}, ["bridge", "zeromq", "grpc"], ()),
        ("[grpc]\n", {}, ["bridge", "grpc"], ("grpc",)),
        ("[zeromq]\n[grpc]\n", {}, ["bridge", "zeromq", "grpc"], ("zeromq", "grpc")),
        ("zeromq = false\n", {}, ["bridge", "grpc"], ()),
        ("zeromq = false\ngrpc = false\n", {}, ["bridge"], ()),
        ("zeromq = false\n[grpc]\n", {}, ["bridge", "grpc"], ("grpc",)),
        ("", {"TOWPATH_GRPC_LISTEN": "127.0.0.1:0"}, ["bridge", "zeromq", "grpc"], ("grpc",)),
        (
            "[zeromq]\n",
            {"TOWPATH_GRPC_LISTEN": "127.0.0.1:0"},
            ["bridge", "zeromq", "grpc"],
            ("zeromq", "grpc"),
        ),
        ("grpc = false\n", {"TOWPATH_GRPC_LISTEN": "127.0.0.1:0"}, ["bridge", "zeromq"], ()),
    ],
)
def test_which_gateways_run(
    tmp_path: Path, text: str, environment: dict[str, str], started: list[str], stated: tuple[str, ...]
) -> None:
    settings = load(tmp_path, text, environment=environment)
    assert list(settings.gateways) == started
    assert settings.stated_gateways == stated


def test_other_towpath_variables_are_none_of_ours(tmp_path: Path) -> None:
    environment = {
        "TOWPATH_SOCKET": "/x",
        "TOWPATH_CONFIG": "/y",
        "TOWPATH_LOG_LEVEL": "debug",
        "PATH": "/bin",
    }
    assert load(tmp_path, environment=environment) == load(tmp_path)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nsession_max = 1\n", "[limits] session_max: unknown key (did you mean 'sessions_max'?)"),
        ("[limit]\n", "limit: unknown key (did you mean 'limits'?)"),
        (
            "[limits]\nsessions_max = 0\n",
            "[limits] sessions_max: 0 is not allowed; allowed: a whole number, 1 to",
        ),
        ("[limits]\nsessions_max = true\n", "sessions_max: True is not allowed"),
        ('[limits]\nsessions_max = "8"\n', "sessions_max: '8' is not allowed"),
        ("limits = 3\n", "[limits]: 3 is not allowed; allowed: a table"),
        ('[daemon]\nlog_level = "loud"\n', "log_level: 'loud' is not allowed; allowed: one of debug, info"),
        ('[daemon]\nruntime_dir = "run"\n', "runtime_dir: 'run' is not allowed; allowed: an absolute path"),
        ('[daemon]\nruntime_dir = "/a\\u0000b"\n', "is not allowed"),
        ('[daemon]\nsocket_mode = "0888"\n', "socket_mode: '0888' is not allowed; allowed: an octal number"),
        ('[daemon]\nsocket_mode = "7777"\n', "socket_mode: '7777' is not allowed"),
        ("[daemon]\nring_bytes = 5000\n", "ring_bytes: 5000 is not allowed; allowed: a power of two"),
        ('[zeromq]\nsub = "tcp://0.0.0.0:5556"\n', "[zeromq] sub: 'tcp://0.0.0.0:5556'"),
        ('[grpc]\nlisten = "nonsense"\n', "[grpc] listen"),
        ("zeromq = true\n", "[zeromq]: True is not allowed; allowed: a table"),
        ('[channels."a..b"]\n', "'a..b' is not a channel's name"),
        ("[channels.plant.line1]\n", "has only tables in it"),
        ("channels = 1\n", "channels: allowed: tables"),
        ('[lock_permissions."a..b"]\n', "'a..b' is not what locks' names begin with"),
        ("[lock_permissions.a.b]\n", '[lock_permissions."a"]: has only tables in it'),
        ('[lock_permissions.a]\ntake = "uid:1"\n', "[lock_permissions.\"a\"] take: 'uid:1' is not allowed"),
        ("[lock_permissions.a]\ntakes = []\n", "takes: unknown key (did you mean 'take'?)"),
        ('[channels.a]\nkind = "stream"\n', "[channels.\"a\"] kind: 'stream' is not allowed"),
        ("[channels.a]\nring_bytes = 4097\n", "ring_bytes: 4097 is not allowed; allowed: a power of two"),
        ("bindings = 1\n", "bindings: allowed: tables [[bindings]]"),
        ("bindings = ['x']\n", "bindings: allowed: tables [[bindings]]"),
        ("[[bindings]]\nchannel = 'a'\n", "number 1: url: missing"),
    ],
)
def test_a_mistake_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    error = refusal(tmp_path, text)
    assert said in error.message
    assert str(tmp_path / "towpath.toml") in error.message
    assert error.row.exit_code == 78


@pytest.mark.parametrize(
    ("binding", "said"),
    [
        ('channel = "b"\nurl = "fifo:/x"\ndirection = "in"', "channel: 'b' is not declared in this file"),
        ('channel = "a"\nurl = "fif:/x"\ndirection = "in"', "begins with no known scheme"),
        ('channel = "a"\nurl = "mq:x"\ndirection = "in"', "one slash"),
        ('channel = "a"\nurl = "fifo:/x"\ndirection = "inward"', "'inward' is not a direction"),
        ('channel = "a"\nurl = "fifo:/x"\ndirection = "in"\nframming = "line"', "framming"),
        ('channel = "a"\nurl = "fifo:/x"\ndirection = "in"\nmode = 432', "mode: 432 is ambiguous"),
        ('channel = "a"\nurl = "fifo:/x"\ndirection = "in"\nmode = 1.5', "mode: 1.5 is not allowed"),
    ],
)
def test_a_bad_binding_is_said_with_its_number(tmp_path: Path, binding: str, said: str) -> None:
    error = refusal(tmp_path, f"[channels.a]\n[[bindings]]\n{binding}\n")
    assert "[[bindings]] number 1:" in error.message
    assert said in error.message


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TOWPATH_LIMITS_SESSIONS": "1"}, "TOWPATH_LIMITS_SESSIONS: unknown key (did you mean"),
        (
            {"TOWPATH_LIMITS_SESSIONS_MAX": "many"},
            "TOWPATH_LIMITS_SESSIONS_MAX: [limits] sessions_max: 'many'",
        ),
        ({"TOWPATH_LIMITS_SESSIONS_MAX": "9" * 5_000}, "is not allowed"),
        ({"TOWPATH_ZEROMQ_SUB": "tcp://*:1"}, "environment and flags: [zeromq] sub"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    error = refusal(tmp_path, "", environment=environment)
    assert said in error.message
    assert len(error.message) < 1_000


def test_a_file_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    def load_bytes(data: bytes) -> str:
        (tmp_path / "x.toml").write_bytes(data)
        with pytest.raises(InvalidConfiguration) as caught:
            load_settings(tmp_path / "x.toml", environment={})
        return caught.value.message

    assert "not TOML" in load_bytes(b"[daemon\n")
    assert "byte 2 is not UTF-8" in load_bytes(b"# \xc3\xff")
    assert "longer than" in load_bytes(b"#" * (CONFIG_BYTES_MAX + 1))
    assert load_bytes(b"a = " + b"[" * 50_000)
    with pytest.raises(InvalidConfiguration, match="cannot be read: No such file"):
        load_settings(tmp_path / "none.toml", environment={})
    with pytest.raises(InvalidConfiguration, match="cannot be read: Is a directory"):
        load_settings(tmp_path, environment={})


def test_as_many_channels_as_fit_into_a_file_are_taken(tmp_path: Path) -> None:
    """Far more than an environment variable would hold."""
    (tmp_path / "many.toml").write_text("".join(f'[channels."c{"x" * 100}{n}"]\n' for n in range(8_000)))
    settings = load_settings(tmp_path / "many.toml", environment={})
    assert len(settings.channels) == 8_000
    assert Settings.from_json(settings.to_json()) == settings


# ---- the journey -------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,12}(\.[A-Za-z0-9_-]{1,8}){0,2}", fullmatch=True)
CHANNELS = st.dictionaries(
    NAMES,
    st.builds(
        ChannelSettings,
        kind=st.sampled_from([None, "topic", "queue", "state", "service"]),
        durable=st.sampled_from([None, True, False]),
        overflow=st.sampled_from([None, "block", "drop"]),
        ring_bytes=st.sampled_from([None, 4_096, 1 << 20, 1 << 30]),
    ),
    max_size=4,
)


@st.composite
def documents(draw: st.DrawFn) -> Settings:
    """Settings as some file could give them."""
    base = load_settings(environment={})
    channels = draw(CHANNELS)
    texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
    bindings = tuple(
        BindingSettings(channel, f"fifo:/x/{number}", draw(st.sampled_from(["in", "out"])), {"mode": "0600"})
        for number, channel in enumerate(sorted(channels))
    )
    gateways = {
        name: table for name, table in base.gateways.items() if name == "bridge" or draw(st.booleans())
    }
    daemon = DaemonSettings(runtime_dir="/" + draw(texts), admin_group=draw(texts), log_level="debug")
    return Settings(daemon, base.limits, channels, bindings, gateways, (), "")


@given(documents())
def test_json_gives_the_same_settings_again(settings: Settings) -> None:
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_table(json.loads(json.dumps(settings.to_table()))) == settings


@given(settings=documents())
def test_printed_settings_give_the_same_settings_again(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> None:
    file = tmp_path_factory.mktemp("printed") / "x.toml"
    file.write_text(config_toml(settings))
    again = load_settings(file, environment={})
    assert (again.daemon, again.limits, again.channels) == (
        settings.daemon,
        settings.limits,
        settings.channels,
    )
    assert (again.bindings, again.gateways) == (settings.bindings, settings.gateways)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"daemon":{}}', "null", '{"daemon":{"x":1}}'])
def test_json_that_is_not_settings_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration):
        Settings.from_json(text)


def test_the_bounds_of_locks_are_a_table_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "towpath.toml"
    file.write_text("[lock_limits]\nspaces_max = 3\n")
    settings = load_settings(file, environment={"TOWPATH_LOCK_LIMITS_WAITS_MAX": "7"})
    assert (settings.lock_limits.spaces_max, settings.lock_limits.waits_max) == (3, 7)
    assert Settings.from_json(settings.to_json()) == settings
    file.write_text("[lock_limits]\nspaces_max = 0\n")
    with pytest.raises(InvalidConfiguration, match="spaces_max"):
        load_settings(file, environment={})
