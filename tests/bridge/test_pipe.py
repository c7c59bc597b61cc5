"""Commands: how they start, end, are started again, and what is carried meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.bridge.rig import Rig, on_loop, processes_gone, read_bytes, within
from towpath.errors import BadFrame, BindingFailed, ChannelUndeclared
from towpath.model import BindingState, Direction
from towpath_broker.gateways.bridge.backoff import DELAY_MS_MAX, HEALTHY_AFTER_S, Backoff, format_delay
from towpath_broker.gateways.bridge.command import STDERR_BYTES_PER_S, STDERR_LINES_MAX, describe_exit


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


# -- its end, and what follows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "status", "state"),
    [
        ("never", 0, "stopped"),
        ("never", 3, "stopped"),
        ("on-failure", 0, "stopped"),
        ("on-failure", 3, "retrying"),
        ("always", 0, "retrying"),
        ("always", 3, "retrying"),
    ],
)
@on_loop
async def test_the_policy_decides_and_the_exit_is_told(policy: str, status: int, state: BindingState) -> None:
    async with Rig() as rig:
        rig.pipe(sh(f"echo hello; exit {status}"), "in", restart=policy, restart_delay_ms="30000")
        if state == "stopped":
            await rig.ended()
            assert rig.tally.detail == f"exited with {status}"
        else:
            await rig.until_state("retrying")
            assert rig.tally.detail == f"exited with {status}, again in 30 s"
            await rig.stop()
        assert rig.tally.state == state
        assert rig.carrier.published == [b"hello"]
        if status:
            assert isinstance(rig.tally.last_error, BindingFailed)
            assert "exited with 3" in rig.tally.last_error.message
        else:
            assert rig.tally.last_error is None


@on_loop
async def test_it_is_started_again_and_each_run_is_carried() -> None:
    async with Rig() as rig:
        rig.pipe(sh("echo hello; exit 3"), "in", restart_delay_ms="10")
        assert await rig.until_published(3) == [b"hello"] * 3
        await rig.stop()
        assert rig.tally.restarts >= 2
        assert rig.states[:4] == ["running", "retrying", "running", "retrying"]


@on_loop
async def test_a_signal_that_ended_it_is_named() -> None:
    async with Rig() as rig:
        rig.pipe(sh("kill -SEGV $$"), "in", restart="never")
        await rig.ended()
        assert (rig.tally.state, rig.tally.detail) == ("stopped", "killed by SIGSEGV")


@on_loop
async def test_all_that_it_wrote_is_carried_before_its_exit_is_told() -> None:
    count = 20_000
    async with Rig() as rig:
        rig.carrier.open.clear()
        rig.pipe(sh(f"seq 1 {count}; exit 1"), "in", restart="never")
        await rig.until(lambda: rig.carrier.has_waiting_publisher)
        assert rig.tally.state == "running"
        rig.carrier.open.set()
        await rig.until_state("stopped")
        assert rig.carrier.published == [b"%d" % number for number in range(1, count + 1)]
        await rig.ended()


@on_loop
async def test_a_subscriber_that_is_slow_beyond_the_stop_s_patience_still_gets_all() -> None:
    count = 100_000  # 589 kB: fits into the pipe, so that the command can end
    async with Rig() as rig:
        rig.carrier.open.clear()
        rig.pipe(["seq", "1", str(count)], "in", restart="never", stop_timeout_ms="0")
        await rig.until(lambda: rig.carrier.has_waiting_publisher)
        await processes_gone(int(rig.tally.detail.removeprefix("pid ")))
        await rig.settle()
        rig.carrier.open.set()
        await rig.ended()
        assert rig.carrier.published == [b"%d" % number for number in range(1, count + 1)]


@on_loop
async def test_the_last_line_needs_no_newline() -> None:
    async with Rig() as rig:
        rig.pipe(sh("printf 'one\\ntwo'"), "in", restart="never")
        await rig.ended()
        assert rig.carrier.published == [b"one", b"two"]


@on_loop
async def test_a_frame_that_the_exit_cut_short_is_counted() -> None:
    async with Rig() as rig:
        rig.pipe(["printf", "3:one,5:tw"], "in", restart="never", framing="netstring")
        await rig.ended()
        assert rig.carrier.published == [b"one"]
        assert rig.tally.refused == 1 and isinstance(rig.tally.last_error, BadFrame)


@on_loop
async def test_output_that_cannot_be_followed_ends_the_run_as_failed() -> None:
    async with Rig() as rig:
        rig.pipe(sh("printf 3:one,oops; exec sleep 1000"), "in", restart="never", framing="netstring")
        await rig.ended()
        assert rig.carrier.published == [b"one"]
        assert rig.tally.refused == 1
        assert (rig.tally.state, rig.tally.detail) == ("stopped", "killed by SIGTERM")
        assert rig.tally.last_error is not None and "oops" in rig.tally.last_error.message


@on_loop
async def test_the_run_after_a_broken_one_is_followed_again() -> None:
    async with Rig() as rig:
        rig.pipe(["printf", "3:one,oops"], "in", restart_delay_ms="10", framing="netstring")
        assert await rig.until_published(3) == [b"one"] * 3
        await rig.stop()
        assert rig.tally.refused >= 2


@on_loop
async def test_closing_its_output_is_not_the_end() -> None:
    async with Rig() as rig:
        rig.pipe(sh("echo one; exec >&-; read x; exit 4"), "both", restart="never")
        await rig.until_published(1)
        assert rig.tally.state == "running"
        rig.carrier.send([b"go"])
        await rig.ended()
        assert rig.tally.detail == "exited with 4"


def test_delays_double_up_to_the_limit_and_begin_anew_after_a_healthy_while() -> None:
    backoff = Backoff(1_000)
    delays = [backoff.next_delay_ms(0.1) for _ in range(7)]
    assert delays == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]
    assert backoff.next_delay_ms(HEALTHY_AFTER_S - 0.001) == DELAY_MS_MAX
    assert backoff.next_delay_ms(HEALTHY_AFTER_S) == 1_000
    assert backoff.next_delay_ms(0) == 2_000
    assert [format_delay(delay) for delay in (10, 1_500, 30_000)] == ["0.01 s", "1.5 s", "30 s"]


def test_ends_are_described() -> None:
    assert describe_exit(0) == "exited with 0"
    assert describe_exit(-signal.SIGKILL) == "killed by SIGKILL"
    assert describe_exit(-99) == "killed by signal 99"


# -- its start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["missing", "not executable", "no program"])
@on_loop
async def test_what_cannot_be_run_is_final(tmp_path: Path, problem: str) -> None:
    program = tmp_path / "program"
    if problem != "missing":
        program.write_bytes(b"\x7fELF nonsense")
        program.chmod(0o755 if problem == "no program" else 0o644)
    async with Rig() as rig:
        rig.pipe([str(program)], "in")
        with pytest.raises(BindingFailed) as caught:
            await rig.ended()
        assert not caught.value.retryable and str(program) in caught.value.message


@on_loop
async def test_no_shell_sees_the_arguments() -> None:
    async with Rig() as rig:
        rig.pipe(["printf", "%s\\n", "$HOME", "*", "a;b"], "in", restart="never")
        await rig.ended()
        assert rig.carrier.published == [b"$HOME", b"*", b"a;b"]


@on_loop
async def test_the_way_to_the_daemon_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWPATH_GATEWAY_FD", "9")
    monkeypatch.setenv("VISIBLE", "yes")
    script = """
import os
print(os.environ.get("TOWPATH_GATEWAY_FD"), os.environ["VISIBLE"], sorted(os.listdir("/proc/self/fd")))
"""
    async with Rig() as rig:
        rig.pipe([sys.executable, "-S", "-c", script], "in", restart="never")
        await rig.ended()
        # 3 is the listing itself.
        assert rig.carrier.published == [b"None yes ['0', '1', '2', '3']"]


@on_loop
async def test_it_has_a_session_and_a_group_of_its_own() -> None:
    script = "import os; print(os.getpid() == os.getsid(0) == os.getpgid(0))"
    async with Rig() as rig:
        rig.pipe([sys.executable, "-S", "-c", script], "in", restart="never")
        await rig.ended()
        assert rig.carrier.published == [b"True"]


# -- what it says --------------------------------------------------------------------------------------------


@on_loop
async def test_standard_error_is_logged_within_bounds_and_never_stops_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with Rig() as rig:
        rig.pipe(sh("seq 1 50000 >&2; printf end >&2; echo done"), "in", restart="never")
        await rig.ended()
        assert rig.carrier.published == [b"done"]
    lines = capfd.readouterr().err.splitlines()
    logged = [line for line in lines if "bridge.stderr " in line]
    assert len(logged) == STDERR_LINES_MAX
    assert logged[0].endswith("line=1") and "channel=test pid=" in logged[0]
    [suppressed] = [line for line in lines if "bridge.stderr_suppressed" in line]
    assert suppressed.endswith(f"lines={50_001 - STDERR_LINES_MAX}")


@on_loop
async def test_a_flood_on_standard_error_is_slowed() -> None:
    """It would cost the bridge all its time otherwise, lines or none."""
    flood_bytes = STDERR_BYTES_PER_S // 2
    async with Rig() as rig:
        began_s = asyncio.get_running_loop().time()
        rig.pipe(sh(f"head -c {flood_bytes} /dev/zero >&2"), "in", restart="never")
        await rig.ended()
        # A pipe's content is read without waiting for more, and at the end the rest.
        paced_bytes = flood_bytes - 2 * 65_536
        assert asyncio.get_running_loop().time() - began_s >= paced_bytes / STDERR_BYTES_PER_S


@on_loop
async def test_the_output_of_a_command_that_only_reads_is_in_no_log(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async with Rig() as rig:
        rig.pipe(["tee", str(tmp_path / "copy")], "out")
        rig.carrier.send([b"secret payload"])
        await rig.until(lambda: rig.tally.messages_out == 1)
        await rig.stop()
    assert (tmp_path / "copy").read_bytes() == b"secret payload\n"
    assert "secret" not in "".join(capfd.readouterr())


# -- both ways -----------------------------------------------------------------------------------------------


@on_loop
async def test_both_directions_at_once() -> None:
    count = 10_000
    async with Rig() as rig:
        rig.pipe(["cat"], "both")
        messages = [b"%d" % number for number in range(count)]
        rig.carrier.send(messages)
        assert await rig.until_published(count) == messages
        await rig.stop()
        assert (rig.tally.messages_in, rig.tally.messages_out, rig.tally.refused) == (count, count, 0)


@on_loop
async def test_what_a_run_left_unread_goes_to_the_next() -> None:
    """Each run reads one line (a shell's read takes no byte more) and ends."""
    count = 6
    async with Rig() as rig:
        rig.pipe(sh("read x; echo $x"), "both", restart_delay_ms="10", restart="always")
        rig.carrier.send([b"%d" % number for number in range(count)])
        assert await rig.until_published(count) == [b"%d" % number for number in range(count)]
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (count, 0)


@on_loop
async def test_a_command_that_closes_its_input_gets_no_more_and_nothing_is_lost() -> None:
    async with Rig() as rig:
        rig.pipe(sh("exec <&-; echo closed; sleep 1000"), "both", stop_timeout_ms="50")
        await rig.until_published(1)
        rig.carrier.send([b"one", b"two"])
        await rig.until(lambda: not rig.carrier.waiting)
        await rig.stop()
        assert (rig.tally.messages_out, rig.tally.refused) == (0, 2)


# -- stopping ------------------------------------------------------------------------------------------------


@on_loop
async def test_at_the_stop_it_gets_what_was_taken_in_then_the_end_of_its_input(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    script = f"trap '' TERM; cat > {copy}; echo finished"
    async with Rig() as rig:
        rig.pipe(sh(script), "both")
        await rig.until_state("running")
        messages = [b"%d" % number for number in range(10_000)]
        rig.carrier.send(messages)
        await rig.until(lambda: rig.tally.messages_out > 0 and not rig.carrier.waiting)
        await rig.stop()
        assert copy.read_bytes().split() == messages
        assert rig.carrier.published == [b"finished"]
        assert rig.tally.refused == 0


@on_loop
async def test_it_is_asked_first_and_what_it_writes_then_is_carried() -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
    async with Rig() as rig:
        rig.pipe(sh(script), "in")
        await rig.until_published(1)
        await rig.stop()
        assert rig.carrier.published == [b"ready", b"bye"]


@on_loop
async def test_it_is_killed_when_it_does_not_end_in_time(capfd: pytest.CaptureFixture[str]) -> None:
    script = "trap '' TERM; echo $$; while :; do sleep 0.01; done"
    async with Rig() as rig:
        rig.pipe(sh(script), "in", stop_timeout_ms="50")
        [pid] = await rig.until_published(1)
        await rig.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert "bridge.command_killed" in capfd.readouterr().err


@pytest.mark.parametrize("direction", ["in", "out"])
@on_loop
async def test_when_the_channel_goes_the_command_is_asked_to_end(
    tmp_path: Path, direction: Direction
) -> None:
    # Tells through a FIFO that the trap is set.
    os.mkfifo(tmp_path / "ready")
    ready = os.open(tmp_path / "ready", os.O_RDWR | os.O_NONBLOCK)
    trap = f"trap 'echo asked > {tmp_path}/asked; exit 0' TERM; echo > {tmp_path}/ready"
    async with Rig() as rig:
        rig.pipe(sh(f"{trap}; while echo hello; do sleep 0.01; done"), direction, stop_timeout_ms="2000")
        await within(read_bytes(ready, 1))
        os.close(ready)
        if direction == "in":
            rig.carrier.publish_error = ChannelUndeclared("test is gone")
        else:
            rig.carrier.fail(ChannelUndeclared("test is gone"))
        with pytest.raises(ChannelUndeclared):
            await rig.ended()
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.parametrize("ignores", ["", "trap '' TERM; "])
@on_loop
async def test_what_it_started_ends_with_it(ignores: str) -> None:
    # The child holds the pipe: the end of the stream would never come by itself.
    script = f"{ignores}sleep 1000 & echo $!; exit 0"
    async with Rig() as rig:
        rig.pipe(sh(script), "in", restart="never", stop_timeout_ms="50")
        [child] = await rig.until_published(1)
        await rig.ended()
        assert rig.tally.detail == "exited with 0"
        await processes_gone(int(child))


@on_loop
async def test_a_daemon_that_escaped_does_not_hold_the_binding(tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$; exec sleep 1000' & read x < {tmp_path}/go; exit 0"
    os.mkfifo(tmp_path / "go")
    async with Rig() as rig:
        rig.pipe(sh(script), "in", restart="never", stop_timeout_ms="50")
        [escaped] = await rig.until_published(1)
        go = os.open(tmp_path / "go", os.O_RDWR)
        os.write(go, b"go\n")
        await rig.ended()
        os.close(go)
        assert rig.tally.detail == "exited with 0"
        os.kill(int(escaped), signal.SIGKILL)
        await processes_gone(int(escaped))


HOST = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tests.bridge.rig import Rig
async def main():
    async with Rig() as rig:
        rig.pipe(["sh", "-c", "trap '' TERM HUP; echo $$; while :; do sleep 0.01; done"], "in")
        [pid] = await rig.until_published(1)
        print(pid.decode(), flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@on_loop
async def test_it_does_not_outlive_a_bridge_that_is_killed() -> None:
    root = str(Path(__file__).parents[2])
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, root, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    command = int(await within(host.stdout.readline()))
    os.kill(command, 0)
    host.kill()
    await within(host.wait())
    await processes_gone(command)


@on_loop
async def test_a_reader_that_is_slow_at_the_stop_does_not_hold_it_for_ever(tmp_path: Path) -> None:
    side = tmp_path / "side"
    os.mkfifo(side)
    reader = os.open(side, os.O_RDWR | os.O_NONBLOCK)
    messages = [b"%06d" % number + b"x" * 993 for number in range(3_000)]
    async with Rig() as rig:
        rig.pipe(sh(f"exec cat > {side}"), "out", stop_timeout_ms="50")
        rig.carrier.send(messages)
        await rig.until(lambda: rig.tally.messages_out > 0)
        await within(read_bytes(reader, 1000))
        await rig.stop()
        assert rig.tally.refused > 0
        assert "not read at the end" in str(rig.tally.last_error)
    os.close(reader)


@on_loop
async def test_what_a_killed_command_did_not_read_is_counted() -> None:
    async with Rig() as rig:
        rig.pipe(
            sh("trap '' TERM; read x; echo $x; while :; do sleep 0.01; done"), "both", stop_timeout_ms="50"
        )
        rig.carrier.send([b"one", b"two", b"three"])
        assert await rig.until_published(1) == [b"one"]
        await rig.until(lambda: rig.tally.messages_out == 3)
        await rig.stop()
        assert rig.tally.refused == 2
