"""pyproject.toml names the packages, constraints.txt pins them, the environment of the tests has the pins."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import towpath
from tests.project.project_files import ROOT

# pip comes with the virtual environment; towpath is this checkout.
UNPINNED = {"pip", "towpath"}


def pins() -> dict[str, str]:
    """Read constraints.txt, canonical name to version."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())
    assert len(pins()) == len(lines), "a package is pinned twice"


def test_every_requirement_is_pinned_within_its_range() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [settings["build-system"]["requires"], settings["project"]["dependencies"]]
    groups += settings["project"]["optional-dependencies"].values()
    required = [Requirement(text) for group in groups for text in group]
    named = [requirement for requirement in required if requirement.name != "towpath"]
    pinned = pins()
    unmet = [
        str(requirement)
        for requirement in named
        if pinned.get(canonicalize_name(requirement.name), "0") not in requirement.specifier
    ]
    assert unmet == []


def test_library_and_distribution_say_the_same_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert towpath.__version__ == project["version"] == metadata.version("towpath")


def test_environment_is_what_the_constraints_say() -> None:
    found = {str(canonicalize_name(found.name)): found.version for found in metadata.distributions()}
    pinned = pins()
    differing = {name: version for name, version in found.items() if pinned.get(name) != version}
    assert differing.keys() - UNPINNED == set(), differing
