"""What the supervisor keeps for the next core: bounded, by name, every descriptor closed once."""

from __future__ import annotations

import asyncio
import os

import pytest

from towpath_broker.host import store as store_module
from towpath_broker.host.packets import Outbox, control_pair, receive_packet
from towpath_broker.host.store import STORE_NAME_CHARS_MAX, STORED_PER_PACKET, Store
from towpath_broker.host.systemd import Notifier


def made(content: str) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, content.encode())
    return descriptor


def content(descriptor: int) -> str:
    return os.pread(descriptor, 100, 0).decode()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def handed_out(store: Store) -> list[tuple[dict[str, object], list[int]]]:
    """All packets that a new core gets, the last of which ends them."""

    async def exchange() -> list[tuple[dict[str, object], list[int]]]:
        ours, theirs = control_pair()
        with ours, theirs:
            outbox = Outbox(ours)
            assert store.hand_out(outbox)
            packets: list[tuple[dict[str, object], list[int]]] = []
            while not packets or packets[-1][0]["type"] != "stored_end":
                received = await asyncio.get_running_loop().run_in_executor(None, receive_packet, theirs)
                assert received is not None
                packets.append(received)
            return packets

    return asyncio.run(exchange())


def test_what_is_stored_is_handed_out_as_often_as_asked() -> None:
    store = Store("core", Notifier({}))
    count = STORED_PER_PACKET + 3
    for number in range(count):
        assert store.put({"type": "store", "name": f"n{number}"}, [made(f"c{number}")]) == ""
    for _ in range(2):
        packets = handed_out(store)
        assert [packet["type"] for packet, _ in packets] == ["stored", "stored", "stored_end"]
        found = {}
        for packet, descriptors in packets[:-1]:
            names = packet["names"]
            assert isinstance(names, list) and len(names) == len(descriptors)
            for name, descriptor in zip(names, descriptors, strict=True):
                found[name] = content(descriptor)
                os.close(descriptor)
        assert found == {f"n{number}": f"c{number}" for number in range(count)}
    store.close()


def test_a_name_has_its_newest_descriptor_and_the_older_one_is_closed() -> None:
    store = Store("core", Notifier({}))
    first, second = made("1"), made("2")
    store.put({"name": "a"}, [first])
    store.put({"name": "a"}, [second])
    assert len(store) == 1 and not is_open(first) and is_open(second)
    store.remove("a")
    store.remove("a")
    store.remove(["a"])
    assert len(store) == 0 and not is_open(second)


@pytest.mark.parametrize("name", ["", "x" * (STORE_NAME_CHARS_MAX + 1), 7, None])
def test_a_name_that_cannot_be_is_refused_and_its_descriptor_closed(name: object) -> None:
    store = Store("core", Notifier({}))
    descriptor = made("1")
    assert "name" in store.put({"name": name}, [descriptor])
    assert len(store) == 0 and not is_open(descriptor)


def test_two_descriptors_for_a_name_are_refused() -> None:
    store = Store("core", Notifier({}))
    pair = [made("1"), made("2")]
    assert store.put({"name": "a"}, pair)
    assert store.put({"name": "a"}, [])
    assert len(store) == 0 and not any(map(is_open, pair))


def test_a_full_store_refuses_new_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "STORE_MAX", 2)
    store = Store("core", Notifier({}))
    for name in ("a", "b"):
        assert store.put({"name": name}, [made(name)]) == ""
    refused = made("c")
    assert "c is not kept" in store.put({"name": "c"}, [refused])
    assert not is_open(refused)
    assert store.put({"name": "a"}, [made("again")]) == ""
    store.close()
    assert len(store) == 0
