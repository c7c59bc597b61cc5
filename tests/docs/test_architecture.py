"""ARCHITECTURE.md and the decisions speak of functions and files that exist."""

from __future__ import annotations

import functools
import importlib
import re
from typing import Final

import pytest

from tests.docs.markdown import ROOT, code_spans
from towpath.v1 import channels_pb2, frame_pb2, registry_pb2

DECISIONS: Final = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "decisions").glob("*.md"))
SPANS: Final = sorted({span for name in ("ARCHITECTURE.md", *DECISIONS) for span in code_spans(name)})
CONTRACT: Final = [span for span in SPANS if re.fullmatch(r"towpath\.v1\.[A-Z]\w*", span)]
PYTHON: Final = [
    span for span in SPANS if re.fullmatch(r"towpath(_broker)?(\.\w+)+", span) and span not in CONTRACT
]
C: Final = [span for span in SPANS if re.fullmatch(r"(tpr|TPR)_\w+", span)]
FILES: Final = [span for span in SPANS if re.fullmatch(r"[\w./]+\.(py|h|c|proto|md|sh|toml)", span)]


def resolve(name: str) -> object:
    """Return what a dotted name stands for.

    Raises:
        ImportError, AttributeError: there is no such thing.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        return functools.reduce(getattr, parts[length:], module)
    raise ImportError(name)


@functools.cache
def c_names() -> frozenset[str]:
    """The functions and constants that the ring's headers define."""
    text = "\n".join(path.read_text() for path in (ROOT / "clients" / "c").glob("*.h"))
    functions = re.findall(r"^static inline [\w ]+?\**(tpr_\w+)\(", text, re.MULTILINE)
    constants = re.findall(r"^(?:#define|\s+)\s*(TPR_\w+)\b", text, re.MULTILINE)
    return frozenset([*functions, *constants])


@pytest.mark.parametrize("name", PYTHON)
def test_python_name_exists(name: str) -> None:
    assert resolve(name) is not None


@pytest.mark.parametrize("name", CONTRACT)
def test_name_of_the_contract_exists(name: str) -> None:
    files = (channels_pb2, registry_pb2, frame_pb2)
    names = [
        part
        for file in files
        for part in (file.DESCRIPTOR.services_by_name, file.DESCRIPTOR.message_types_by_name)
    ]
    assert any(name.rpartition(".")[2] in part for part in names)


@pytest.mark.parametrize("name", C)
def test_c_name_exists(name: str) -> None:
    assert name in c_names()


@pytest.mark.parametrize("name", FILES)
def test_file_exists(name: str) -> None:
    """A path from the top, or the end of one: the table names neighbours by their last parts."""
    if not (ROOT / name).is_file():
        assert [
            *ROOT.glob(f"broker/**/{name}"),
            *ROOT.glob(f"protos/**/{name}"),
            *ROOT.glob(f"clients/**/{name}"),
        ]


def test_there_is_something_to_check() -> None:
    """So that a change of the document's style does not make the tests above empty."""
    assert len(PYTHON) > 50 and len(C) > 15 and len(FILES) > 20 and len(DECISIONS) >= 5


def test_a_name_that_does_not_exist_is_found() -> None:
    with pytest.raises(AttributeError):
        resolve("towpath.sync.messages.Publisher.nothing")
    with pytest.raises((ImportError, AttributeError)):
        resolve("towpath.sync.nothing.Publisher")
    assert "tpr_writer_nothing" not in c_names()


def test_every_room_is_explained() -> None:
    rooms = (ROOT / "ARCHITECTURE.md").read_text().partition("## The rooms")[2].partition("\n## ")[0]
    packages = [
        str(file.parent.relative_to(ROOT))
        for folder in ("broker/towpath_broker", "clients/python/towpath")
        for file in (ROOT / folder).rglob("__init__.py")
    ]
    assert len(packages) > 20
    shown = set(re.findall(r"`([\w./]+)`", rooms))
    missing = [
        name for name in packages if not any(name == room or name.endswith(f"/{room}") for room in shown)
    ]
    assert missing == []
