"""Who may take, see and take away which locks."""

from __future__ import annotations

import pytest

from towpath.errors import PermissionDenied
from towpath_broker.core.locks.permissions import LockPermissions, Permissions

TABLES = {
    "": LockPermissions(see=("uid:1",)),
    "plant": LockPermissions(take=("uid:1", "grpc:*"), see=("uid:1", "uid:2"), force_release=("uid:2",)),
    "plant.line1": LockPermissions(take=()),
}
PERMISSIONS = Permissions(TABLES)


def may(what: str, principal: str, name: str) -> bool:
    try:
        if what == "take":
            PERMISSIONS.check_take(principal, [name])
        elif what == "see":
            PERMISSIONS.check_see(principal, name)
        else:
            PERMISSIONS.check_force_release(principal, name)
    except PermissionDenied as refusal:
        assert principal in refusal.message and repr(name) in refusal.message and what in refusal.message
        assert refusal.hint
        return False
    return True


@pytest.mark.parametrize(
    ("principal", "name", "allowed"),
    [
        ("uid:1", "plant", "take see"),
        ("uid:1", "plant.line2.x", "take see"),
        ("uid:2", "plant.line2", "see force-release"),
        ("grpc:anonymous", "plant.a", "take"),
        ("grpcx", "plant.a", ""),
        ("uid:11", "plant.a", ""),
        ("uid:1", "plant.line1", "see"),  # the longest counts alone: its take, and the defaults of the others
        ("uid:2", "plant.line1.a", "see"),
        ("uid:1", "plants", "take see"),
        ("uid:2", "plants", "take"),
        ("uid:2", "plan", "take"),
    ],
)
def test_the_longest_prefix_that_fits_counts_alone(principal: str, name: str, allowed: str) -> None:
    for what in ("take", "see", "force-release"):
        assert may(what, principal, name) == (what in allowed.split())
    assert PERMISSIONS.may_see(principal, name) == ("see" in allowed.split())


def test_one_lock_of_several_that_may_not_be_taken_is_named() -> None:
    with pytest.raises(PermissionDenied, match=r"'plant\.line1'"):
        PERMISSIONS.check_take("uid:1", ["plant.a", "plant.line1"])


def test_without_a_table_everybody_may_all_but_take_away() -> None:
    for permissions in (Permissions({}), Permissions({"plant": LockPermissions()})):
        for name in ("plant", "other"):
            permissions.check_take("zeromq:anonymous", [name])
            permissions.check_see("zeromq:anonymous", name)
            assert permissions.may_see("zeromq:anonymous", name)
            with pytest.raises(PermissionDenied):
                permissions.check_force_release("uid:1", name)
