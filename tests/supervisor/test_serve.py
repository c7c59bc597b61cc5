"""`towpath serve`, whole: the real supervisor, core and gateways, and what happens when they die or are told
things."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import TABLE, Code, Unavailable
from towpath_broker.core_keeper import HELD_CONNECTIONS_MAX, STARTS_MAX, CoreKeeper
from towpath_broker.host.directories import listen_at
from towpath_broker.host.store import Store
from towpath_broker.host.systemd import Notifier
from towpath_broker.settings import Settings
from towpath_broker.supervisor import DESCRIPTORS_NEEDED


def serve(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `towpath serve` where it is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "towpath", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, **(env or {})},
        check=False,
    )


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path, LOCAL_ONLY) as running:
        yield running


def children_of(daemon: DaemonHandle) -> dict[int, int]:
    """The daemon's children: pid to pidfd."""
    pid = daemon.process.pid
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child): os.pidfd_open(int(child)) for child in pids}


def wait_for_end(pidfd: int) -> bool:
    try:
        return bool(select.select([pidfd], [], [], DEADLINE_S)[0])
    finally:
        os.close(pidfd)


# ---- start -------------------------------------------------------------------------------------------------


def test_all_gateways_run_and_say_where(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        gateways = {gateway.name: gateway for gateway in daemon.status().gateways}
        assert list(gateways) == ["bridge", "zeromq", "grpc"]
        assert {gateway.state for gateway in gateways.values()} == {"running"}
        assert set(gateways["zeromq"].endpoints) == {"sub", "push", "rpc"}
        assert not gateways["grpc"].endpoints["listen"].endswith(":0")


def test_the_socket_is_for_its_owner_alone(daemon: DaemonHandle) -> None:
    assert daemon.socket.stat().st_mode & 0o777 == 0o600
    assert daemon.socket.parent.stat().st_mode & 0o777 == 0o700


def test_the_core_may_open_more_files_than_a_shell_gives_it(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
            assert resource.prlimit(daemon.core_pid, resource.RLIMIT_NOFILE) == (min(hard, 65_536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_second_daemon_is_told_who_has_the_place(daemon: DaemonHandle, tmp_path: Path) -> None:
    second = serve("--runtime-dir", str(daemon.socket.parent), "--state-dir", str(tmp_path / "other"))
    assert second.returncode == 69
    assert f"already running, pid {daemon.process.pid}" in second.stderr
    # The same journal from another runtime directory would be worse.
    third = serve("--runtime-dir", str(tmp_path / "r"), "--state-dir", str(tmp_path / "state"))
    assert f"already running, pid {daemon.process.pid}" in third.stderr
    assert daemon.status().pid == daemon.core_pid


def test_what_cannot_start_says_so_in_two_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[daemon]\nlog_levle = 'info'\n")
    bad = serve("--config", str(tmp_path / "bad.toml"))
    assert bad.returncode == 78
    assert bad.stderr.splitlines()[0].startswith(
        f"towpath: {tmp_path}/bad.toml: [daemon] log_levle: unknown key"
    )
    assert len(bad.stderr.splitlines()) == 2
    assert serve("--set", "zeromq.sub").returncode == 78
    assert serve("--set", "zeromqq.sub=x").returncode == 78


def test_configuration_is_checked_and_printed(tmp_path: Path) -> None:
    file = tmp_path / "towpath.toml"
    file.write_text(
        'zeromq = false\n[channels."a.b"]\n[[bindings]]\nchannel="a.b"\nurl="fifo:/x"\ndirection="in"\n'
    )
    checked = serve("--config", str(file), "--check-config")
    assert (checked.returncode, checked.stdout) == (
        0,
        f"{file}: fine; channels: 1, bindings: 1, gateways: bridge, grpc\n",
    )
    printed = serve("--config", str(file), "--print-config", env={"TOWPATH_DAEMON_ADMIN_GROUP": "wheel"})
    assert 'admin_group = "wheel"' in printed.stdout
    (tmp_path / "again.toml").write_text(printed.stdout)
    assert serve("--config", str(tmp_path / "again.toml"), "--print-config").stdout == printed.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[daemon]\nring_bytes = 4096\n[limits]\nring_bytes_max = 4096\n[channels.a]\nring_bytes = 8192\n",
            "8192",
        ),
        (
            "[channels.a]\n"
            + '[[bindings]]\nchannel="a"\nurl="fifo:/x"\ndirection="in"\n' * 2
            + '[[bindings]]\nchannel="a"\nurl="fifo://x"\ndirection="out"\n',
            "fifo",
        ),
        ("[limits]\nchannels_max = 1\n[channels.a]\n[channels.b]\n", "channels_max"),
    ],
)
def test_what_the_core_would_refuse_is_found_by_the_check(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "towpath.toml"
    file.write_text(text)
    checked = serve("--config", str(file), "--check-config")
    assert checked.returncode == 78
    assert said in checked.stderr
    assert "Traceback" not in checked.stderr


def test_the_check_does_not_advise_to_check(tmp_path: Path) -> None:
    file = tmp_path / "towpath.toml"
    file.write_text("[chanels.a]\n")
    assert "hint: try: towpath serve --check-config" in serve("--config", str(file)).stderr
    checked = serve("--config", str(file), "--check-config")
    assert checked.stderr.splitlines()[1].startswith("hint: towpath serve --print-example")


def test_too_few_descriptors_are_told_at_once(tmp_path: Path) -> None:
    place = ("--runtime-dir", str(tmp_path / "r"), "--state-dir", str(tmp_path / "s"))
    command = [sys.executable, "-m", "towpath", "serve", *place]
    run = subprocess.run(
        ["sh", "-c", f'ulimit -n {DESCRIPTORS_NEEDED - 1}; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == TABLE[Code.LIMIT_EXCEEDED].exit_code
    said, hint = run.stderr.splitlines()
    assert f"may have {DESCRIPTORS_NEEDED - 1} open files" in said and f"needs {DESCRIPTORS_NEEDED}" in said
    assert hint == "hint: raise ulimit -n, or LimitNOFILE= of its unit"


def test_a_deleted_socket_is_made_again(daemon: DaemonHandle) -> None:
    for again in range(2):
        mark = daemon.mark()
        if again:
            daemon.socket.rename(daemon.socket.with_name("moved"))
        else:
            daemon.socket.unlink()
        daemon.wait_log(r" daemon\.socket_made_again ", after=mark)
        with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client:
            client.declare(f"c{again}")
        assert daemon.socket.stat().st_mode & 0o777 == 0o600
        daemon.kill_core()  # the next core listens there too
        assert len(daemon.status().channels) == again + 1
    daemon.socket.with_name("moved").unlink()


def test_something_else_in_the_sockets_place_is_told_and_left_alone(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        mark = daemon.mark()
        other = daemon.socket.with_name("other")
        other.write_text("precious")
        other.rename(daemon.socket)
        daemon.wait_log(r" daemon\.socket_gone .*something else is in its place", after=mark)
        wait_until(lambda: len(client.status().warnings) == 1, daemon.log)
        assert "nobody can connect any more" in client.status().warnings[0]
        assert daemon.stop() == 0
        assert daemon.socket.read_text() == "precious"


def without(module: str, place: Path) -> dict[str, str]:
    """Return the environment of an interpreter that does not find a module."""
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        f"util.find_spec = lambda name, package=None: None if name == {module!r} else found(name, package)\n"
    )
    return {"PYTHONPATH": str(place)}


def test_without_the_c_extension_it_says_what_to_do(tmp_path: Path) -> None:
    refused = serve("--check-config", env=without("towpath._ring", tmp_path / "site"))
    assert refused.returncode == 78
    assert "the C extension towpath._ring" in refused.stderr
    assert "hint: install gcc" in refused.stderr


def test_a_gateway_without_its_package_is_an_error_only_when_it_was_asked_for(tmp_path: Path) -> None:
    env = without("zmq", tmp_path / "site")
    asked = serve("--set", "zeromq.sub=tcp://127.0.0.1:0", "--check-config", env=env)
    assert asked.returncode == 78
    assert (
        "[zeromq]: the gateway cannot run: zmq not installed; try: pip install 'towpath[zmq]'" in asked.stderr
    )
    assert serve("--check-config", env=env).returncode == 0


# ---- death -------------------------------------------------------------------------------------------------


def test_the_core_is_started_again_and_clients_wait_for_it(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as before:
        before.declare("kept")
        first = daemon.core_pid
        mark = daemon.mark()
        os.kill(first, signal.SIGKILL)
        daemon.wait_log(r" core\.exited ", after=mark)
        # Nobody accepts now; the connection waits in the backlog instead of failing.
        with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as during:
            assert [channel.name for channel in during.channels()] == ["kept"]
        assert daemon.core_pid != first
    [bridge] = daemon.status().gateways
    assert (bridge.state, bridge.restarts) == ("running", 0)


def test_a_core_that_the_host_cannot_start_is_tried_again(daemon: DaemonHandle) -> None:
    pid, first, mark = daemon.process.pid, daemon.core_pid, daemon.mark()
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        os.kill(first, signal.SIGKILL)
        daemon.wait_log(r" core\.exited status=\"could not be started: Too many open files\"", after=mark)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client:
        client.declare("works")
    assert daemon.core_pid != first


def test_only_so_many_connections_of_gateways_are_held(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with listen_at(tmp_path / "s", mode=0o600) as listener:
        keeper = CoreKeeper(
            Settings,
            listener=listener,
            state_lock=listener.fileno(),
            store=Store("core", Notifier({})),
            notifier=Notifier({}),
            on_change=lambda text: None,
            on_start=lambda: None,
        )
        for _ in range(3 * HELD_CONNECTIONS_MAX):
            keeper.relay("zeromq", 1, os.dup(listener.fileno()))
        assert len(os.listdir("/proc/self/fd")) == before + 1 + HELD_CONNECTIONS_MAX
        keeper.close()


def test_a_gateway_is_started_again(daemon: DaemonHandle) -> None:
    before = daemon.gateway("bridge")
    daemon.kill_gateway("bridge")
    after = daemon.gateway("bridge")
    assert after.pid != before.pid
    assert (after.state, after.restarts) == ("running", 1)


def test_a_core_that_can_never_work_ends_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "journal.sqlite").write_text("precious, and no database\n" * 100)
    run = serve("--runtime-dir", str(tmp_path / "r"), "--state-dir", str(tmp_path / "state"))
    assert run.returncode == 78
    assert "core.failed code=INVALID_CONFIGURATION" in run.stderr
    assert "core.failed_for_good" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "r" / "towpath.sock").exists()


def test_a_core_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    """The pauses between the starts grow; then whoever runs the daemon decides."""
    broken = tmp_path / "site"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os, sys\nif 'TOWPATH_CORE_LISTEN_FD' in os.environ: os._exit(7)\n"
        "from towpath_broker.host import children\nchildren.BACKOFF_FIRST_S = 0.001\n"
    )
    place = ("--runtime-dir", str(tmp_path / "r"), "--state-dir", str(tmp_path / "s"))
    run = serve(*place, "--config", no_gateways(tmp_path), env={"PYTHONPATH": str(broken)})
    assert run.returncode == os.EX_SOFTWARE
    assert run.stderr.count(" core.started ") == STARTS_MAX
    pauses = re.findall(r"core\.exited status=\"exited with 7\" delay_s=(\S+)", run.stderr)
    assert [float(pause) for pause in pauses] == [0.001 * 2**n for n in range(STARTS_MAX - 1)]
    given_up = f'core.given_up status="exited with 7" starts={STARTS_MAX} exit={os.EX_SOFTWARE}'
    assert given_up in run.stderr
    assert "daemon.stopped status=70" in run.stderr
    assert not (tmp_path / "r" / "towpath.sock").exists()


def test_a_core_that_was_ready_is_always_started_again(tmp_path: Path) -> None:
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
        for _ in range(STARTS_MAX + 1):
            daemon.kill_core()
        assert daemon.status().incarnation == STARTS_MAX + 2


def no_gateways(tmp_path: Path) -> str:
    file = tmp_path / "none.toml"
    file.write_text(LOCAL_ONLY)
    return str(file)


def test_a_configuration_of_thousands_of_channels_reaches_the_core(tmp_path: Path) -> None:
    """Also at a reload, and by far more bytes than an environment variable or a packet holds."""
    table = "".join(f'[channels."c{"x" * 100}{n}"]\n' for n in range(1_500))
    with running_daemon(tmp_path, LOCAL_ONLY + table) as daemon:
        assert len(daemon.status().channels) == 1_500
        daemon.config.write_text(LOCAL_ONLY + table + "[channels.another]\n")
        assert "daemon.reloaded" in daemon.reload()
        assert len(daemon.status().channels) == 1_501


def test_a_channel_is_undeclared_right_after_its_binding(daemon: DaemonHandle) -> None:
    """The bridge may not have closed its ends by then; they are not in the way."""
    with towpath.connect(str(daemon.socket)) as client:
        for number in range(20):
            client.declare(f"c{number}")
            binding = client.bind(f"c{number}", f"fifo:{daemon.config.parent}/f", direction="in")
            client.unbind(binding.id)
            client.undeclare(f"c{number}")


def test_a_reload_removes_a_channel_with_its_binding(daemon: DaemonHandle) -> None:
    both = (
        f'[channels.c]\n[[bindings]]\nchannel = "c"\nurl = "fifo:{daemon.config.parent}/f"\n'
        'direction = "out"\n'
    )
    for _ in range(5):
        daemon.config.write_text(LOCAL_ONLY + both)
        assert "daemon.reloaded" in daemon.reload()
        wait_until(lambda: [c.subscribers for c in daemon.status().channels] == [1], daemon.log)
        daemon.config.write_text(LOCAL_ONLY)
        assert "daemon.reloaded" in daemon.reload()
        assert (daemon.status().channels, daemon.status().warnings) == ((), ())


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        children = children_of(daemon)
        assert len(children) == 4
        daemon.process.kill()
        ended = [wait_for_end(pidfd) for pidfd in children.values()]
        assert all(ended)
        daemon.wait()
    # Its socket and locks are in nobody's way.
    with running_daemon(tmp_path, LOCAL_ONLY) as successor:
        assert successor.status().incarnation == 2


# ---- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with running_daemon(tmp_path) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("open.while.it.ends")
        daemon.process.send_signal(number)
        assert daemon.wait() == 0
        events = [
            *("daemon.stopping", "gateway.stopped gateway=bridge", "daemon.gateways_stopped"),
            *("core.stopped", "daemon.stopped"),
        ]
        places = [daemon.log().find(f" {event}") for event in events]
        assert -1 not in places
        assert places == sorted(places)
        assert not daemon.socket.exists()
        assert "Traceback" not in daemon.log()


def test_the_socket_goes_first(daemon: DaemonHandle) -> None:
    """A stopped bridge holds up the end; meanwhile nobody gets in, and who is in is served."""
    bridge = daemon.gateway("bridge").pid
    with towpath.connect(str(daemon.socket)) as client:
        os.kill(bridge, signal.SIGSTOP)
        daemon.process.terminate()
        wait_until(lambda: not daemon.socket.exists())
        with pytest.raises(Unavailable):
            towpath.connect(str(daemon.socket))
        assert client.channels() == []
        os.kill(bridge, signal.SIGCONT)
        assert daemon.wait() == 0


def test_a_second_interrupt_ends_it_at_once(daemon: DaemonHandle) -> None:
    os.kill(daemon.gateway("bridge").pid, signal.SIGSTOP)
    children = children_of(daemon)
    daemon.process.send_signal(signal.SIGINT)
    daemon.wait_log(r" daemon\.stopping")
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.wait() == 130
    ended = [wait_for_end(pidfd) for pidfd in children.values()]
    assert all(ended)


# ---- reload ------------------------------------------------------------------------------------------------


def test_reload_brings_channels_and_gateways_to_what_the_file_says(daemon: DaemonHandle) -> None:
    bridge = daemon.gateway("bridge").pid
    daemon.config.write_text('[grpc]\nlisten = "127.0.0.1:0"\n[channels."new.one"]\n')
    assert "daemon.reloaded" in daemon.reload()
    status = daemon.status()
    assert [channel.name for channel in status.channels] == ["new.one"]
    assert [(gateway.name, gateway.state) for gateway in status.gateways] == [
        ("bridge", "running"),
        ("grpc", "running"),
    ]
    # A changed table restarts its gateway and no other; one that goes is ended.
    first = daemon.gateway("grpc").pid
    daemon.config.write_text('[grpc]\nlisten = "127.0.0.1:0"\ncalls_max = 5\n')
    daemon.reload()
    assert daemon.gateway("grpc").state == "running"
    assert daemon.gateway("grpc").pid != first
    daemon.config.write_text(LOCAL_ONLY)
    daemon.reload()
    assert [(gateway.name, gateway.pid) for gateway in daemon.status().gateways] == [("bridge", bridge)]


def test_a_bad_file_changes_nothing_and_is_told(daemon: DaemonHandle) -> None:
    daemon.config.write_text("[limits]\nsessions_max = 'many'\n")
    assert "config.refused" in daemon.reload()
    status = daemon.status()
    assert [gateway.state for gateway in status.gateways] == ["running"]
    [warning] = status.warnings
    assert "the configuration was not reloaded" in warning
    assert "sessions_max: 'many' is not allowed" in warning
    daemon.config.write_text(LOCAL_ONLY)
    assert "daemon.reloaded" in daemon.reload()
    assert daemon.status().warnings == ()


def test_what_needs_a_restart_is_said(daemon: DaemonHandle) -> None:
    daemon.config.write_text(LOCAL_ONLY + "[daemon]\nsocket_mode = '0660'\n")
    assert "daemon.reloaded" in daemon.reload()
    daemon.wait_log(r" config\.needs_restart .*setting=daemon\.socket_mode")
    assert daemon.socket.stat().st_mode & 0o777 == 0o600
    assert any("socket_mode was changed" in warning for warning in daemon.status().warnings)
