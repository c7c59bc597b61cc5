"""Only who was given an id may take it up again: others show no token, or the wrong one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.door.raw import RawClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from towpath import _ring
from towpath.errors import Code, PermissionDenied
from towpath.v1 import frame_pb2, registry_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.local.tokens import KEY_BYTES, TOKEN_BYTES, ResumeTokens, read_key

RING_BYTES = 4096
SLOTS = 3


@pytest.fixture(scope="module")
def own_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("thief"), LOCAL_ONLY) as handle:
        with RawClient(handle.socket) as client:
            options = registry_pb2.ChannelOptions(ring_bytes=RING_BYTES)
            request = registry_pb2.DeclareChannelRequest(name="mine", options=options)
            client.ask(Frame(id=2, declare_channel_request=request))
        yield handle


def attach_source(client: RawClient, ring: _ring.Writer, **fields: object) -> Frame:
    request = frame_pb2.AttachSourceRequest(channel="mine", source=ring.source, **fields)  # type: ignore[arg-type]
    descriptor = ring.share()
    try:
        return client.ask(Frame(id=7, attach_source_request=request), descriptor)
    finally:
        os.close(descriptor)


def attach_reader(client: RawClient, page: _ring.Reader, **fields: object) -> Frame:
    request = frame_pb2.AttachReaderRequest(channel="mine", reader=page.reader, slots=SLOTS, **fields)  # type: ignore[arg-type]
    descriptor = page.share()
    try:
        return client.ask(Frame(id=8, attach_reader_request=request), descriptor)
    finally:
        os.close(descriptor)


def is_denied(answer: Frame) -> bool:
    return answer.WhichOneof("body") == "error" and Code(answer.error.code) is Code.PERMISSION_DENIED


@pytest.mark.parametrize("is_core_killed", [False, True])
def test_a_thief_gets_nothing_and_the_owner_its_own(own_daemon: DaemonHandle, is_core_killed: bool) -> None:
    with RawClient(own_daemon.socket) as owner:
        ring = _ring.Writer(owner.welcome.first_id, RING_BYTES)
        page = _ring.Reader(owner.welcome.first_id + 1, SLOTS)
        source_token = attach_source(owner, ring).attach_source_response.resume_token
        reader_token = attach_reader(owner, page).attach_reader_response.resume_token
        assert len(source_token) == len(reader_token) == TOKEN_BYTES
        assert source_token != reader_token
        before = own_daemon.status().sessions if not is_core_killed else 0
        if is_core_killed:
            own_daemon.kill_core()
    if not is_core_killed:
        wait_until(lambda: own_daemon.status().sessions < before)
    with RawClient(own_daemon.socket) as thief:
        # the ring itself can be had: each subscriber is given its descriptor
        for shown in (b"", b"0" * TOKEN_BYTES, reader_token, source_token[:-1], source_token + b"0"):
            assert is_denied(attach_source(thief, ring, resumed=True, resume_token=shown))
        for shown in (b"", source_token):
            assert is_denied(attach_reader(thief, page, resumed=True, resume_token=shown))
    with RawClient(own_daemon.socket) as owner:
        back = attach_source(owner, ring, resumed=True, resume_token=source_token)
        assert back.attach_source_response.resume_token == source_token
        back = attach_reader(owner, page, resumed=True, resume_token=reader_token)
        assert back.attach_reader_response.resume_token == reader_token


def test_a_token_is_of_one_id_one_principal_and_one_key() -> None:
    tokens = ResumeTokens(b"k" * KEY_BYTES)
    token = tokens.token(7, "uid:1000")
    tokens.check(7, "uid:1000", token)
    for identifier, principal in ((8, "uid:1000"), (7, "uid:1001"), (7, "uid:100"), (71, "uid:1000")):
        with pytest.raises(PermissionDenied):
            tokens.check(identifier, principal, token)
    with pytest.raises(PermissionDenied):
        ResumeTokens(b"l" * KEY_BYTES).check(7, "uid:1000", token)


def test_the_key_is_kept_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "resume.key"
    key = read_key(path)
    assert read_key(path) == key and len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["resume.key"]
    path.write_bytes(key[:-1])  # a disk that was full, say
    assert read_key(path) != key and len(read_key(path)) == KEY_BYTES


def test_a_key_behind_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x" * KEY_BYTES)
    (tmp_path / "resume.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        read_key(tmp_path / "resume.key")
