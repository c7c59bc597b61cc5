"""The generated code is what the protos say, and the requirements are what the generated code says."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.project.project_files import CLIENT, ROOT
from tests.support.deadlines import DEADLINE_S

GENERATED = CLIENT / "v1"


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    command = [sys.executable, str(ROOT / "tools" / "generate_protos.py"), "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0, run.stdout + run.stderr
    return out / "towpath" / "v1"


def test_generated_code_is_not_stale(regenerated: Path) -> None:
    fresh = {path.name: path.read_text() for path in regenerated.iterdir()}
    kept = {path.name: path.read_text() for path in GENERATED.glob("*_pb2*")}
    differing = sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))
    assert differing == [], "run `make proto` and commit what it changes"
    assert "channels_pb2.py" in fresh


def test_every_proto_is_generated(regenerated: Path) -> None:
    protos = {path.stem for path in (ROOT / "protos" / "towpath" / "v1").glob("*.proto")}
    assert {path.name.removesuffix("_pb2.py") for path in regenerated.glob("*_pb2.py")} == protos


@pytest.mark.parametrize(
    ("package", "pattern"),
    [
        ("protobuf", r"# Protobuf Python Version: ([\d.]+)"),
        ("grpcio", r"GRPC_GENERATED_VERSION = '([\d.]+)'"),
    ],
)
def test_requirements_are_new_enough_for_the_generated_code(package: str, pattern: str) -> None:
    """Generated code refuses, when imported, a library older than what generated it."""
    made_for = {
        Version(version)
        for path in GENERATED.glob("*_pb2*.py")
        for version in re.findall(pattern, path.read_text())
    }
    assert len(made_for) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    allowed = [Requirement(text) for group in groups for text in group if Requirement(text).name == package]
    lowest = {
        Version(bound.version) for found in allowed for bound in found.specifier if bound.operator == ">="
    }
    assert lowest == made_for
