"""What is built from a checkout: an sdist that can build, a whole wheel, and one without a compiler.

All of it for real: setuptools builds, pip installs into virtual environments that hold the base dependencies
and nothing else. These are copied from the environment of the tests, so that no network is needed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.project.project_files import copy_checkout, own_files
from tests.support.daemon import running_daemon
from tests.support.deadlines import PROGRAM_S

BASE_DEPENDENCIES = ("protobuf", "shtab")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program that must succeed, outside this checkout's own environment variables."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PIP_NO_INPUT": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path, **environment: str) -> Path:
    """Build a wheel with the setuptools of the tests' environment."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "-w", out, source, cwd=source, **environment)
    (wheel,) = out.glob("towpath-*.whl")
    return wheel


def copy_installed(name: str, site_packages: Path) -> None:
    """Copy an installed distribution from the tests' environment."""
    for file in metadata.files(name) or []:
        if ".." not in file.parts:
            (site_packages / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), site_packages / file)


def install(wheel: Path, home: Path) -> Path:
    """Install a wheel beside nothing but its base dependencies; return the interpreter."""
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (site_packages,) = home.glob("lib/python3.*/site-packages")
    for name in BASE_DEPENDENCIES:
        copy_installed(name, site_packages)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    # With its dependencies, from no index: that it succeeds shows that there are no others.
    run(*pip, "install", "-q", "--no-index", wheel, cwd=home)
    return python


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this checkout, unpacked."""
    source, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("sdist")
    copy_checkout(source)
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    run(sys.executable, "-c", build, cwd=source)
    (archive,) = out.glob("towpath-*.tar.gz")
    run("tar", "-xf", archive, cwd=out)
    return Path(str(archive).removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the sdist builds where there is a compiler."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"), TOWPATH_EXTENSION="required")


def test_sdist_has_all_sources(sdist: Path) -> None:
    folders = ("clients/python", "clients/c", "broker", "protos", "tools")
    kinds = {".py", ".pyi", ".c", ".h", ".proto", ".typed", ".sh"}
    wanted = [name for name in own_files() if name.as_posix().startswith(folders) and name.suffix in kinds]
    wanted = [name for name in wanted if "examples" not in name.parts]
    assert [str(name) for name in wanted if not (sdist / name).is_file()] == []
    assert any(name.suffix == ".h" for name in wanted) and any(name.suffix == ".proto" for name in wanted)


def test_wheel_has_both_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = {Path(name) for name in packed.namelist()}
    wanted = {
        name.relative_to(root)
        for name in own_files()
        for root in (Path("clients/python"), Path("broker"))
        if name.is_relative_to(root) and name.suffix in {".py", ".pyi", ".typed"}
    }
    extension = {name for name in names if name.suffix == ".so"}
    information = {name for name in names if name.parts[0].endswith(".dist-info")}
    assert {name.name.partition(".")[0] for name in extension} == {"_ring", "_native"}
    assert names - extension - information == wanted
    assert {"LICENSE", "entry_points.txt"} <= {name.name for name in information}


def test_installed_wheel_has_the_extension_and_both_commands(wheel: Path, tmp_path: Path) -> None:
    python = install(wheel, tmp_path / "home")
    where = run(python, "-c", "import towpath._ring; print(towpath._ring.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "home")
    for command in ("towpath", "towpathd"):
        assert "usage:" in run(python.parent / command, "--help", cwd=tmp_path)


@pytest.fixture(scope="module")
def bare_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the sdist builds where there is no compiler."""
    home = tmp_path_factory.mktemp("bare")
    failing = home / "cc"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    (home / "wheel").mkdir()
    # A copy, since setuptools leaves what the other wheel's build compiled in the folder it built in.
    source = shutil.copytree(sdist, home / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    return build_wheel(source, home / "wheel", CC=str(failing), LDSHARED=str(failing))


@pytest.fixture(scope="module")
def bare_python(bare_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter beside which that wheel is installed, and nothing else that is not needed."""
    return install(bare_wheel, tmp_path_factory.mktemp("installed") / "home")


def test_without_a_compiler_a_purely_remote_client_is_installed(
    bare_wheel: Path, bare_python: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(bare_wheel) as packed:
        assert not [name for name in packed.namelist() if name.endswith(".so")]
    code = "import towpath, towpath.aio; print(callable(towpath.connect), callable(towpath.aio.connect))"
    assert run(bare_python, "-c", code, cwd=tmp_path) == "True True\n"
    assert "usage:" in run(bare_python.parent / "towpath", "--help", cwd=tmp_path)


ROUND_TRIP = """
import asyncio, importlib.util, sys, towpath, towpath.aio
assert importlib.util.find_spec("towpath._ring") is None
async def main(url, channel):
    async with await towpath.aio.connect(url) as client, await client.subscribe(channel) as subscription:
        await client.channel(channel).publish(b"asyncio")
        print((await subscription.receive(timeout=60)).payload.decode())
for url in sys.argv[1:]:
    channel = "from." + url.partition(":")[0]
    with towpath.connect(url) as client:
        client.declare(channel)
        with client.subscribe(channel) as subscription:
            client.channel(channel).publish(b"sync")
            print(subscription.receive(timeout=60).payload.decode())
    asyncio.run(main(url, channel))
"""


def test_a_remote_client_works_without_the_extension(bare_wheel: Path, tmp_path: Path) -> None:
    python = install(bare_wheel, tmp_path / "home")
    (site_packages,) = (tmp_path / "home").glob("lib/python3.*/site-packages")
    for name in ("grpcio", "typing_extensions", "pyzmq"):
        copy_installed(name, site_packages)
    (tmp_path / "daemon").mkdir()
    with running_daemon(tmp_path / "daemon") as daemon:
        urls = [f"grpc://{daemon.endpoint('grpc', 'listen')}"]
        urls.append(daemon.endpoint("zeromq", "rpc").replace("tcp://", "zmq://"))
        assert run(python, "-c", ROUND_TRIP, *urls, cwd=tmp_path) == 2 * "sync\nasyncio\n"


@pytest.mark.parametrize("carrier", ["grpc", "zmq"])
def test_a_carrier_whose_package_is_missing_is_named_with_its_extra(
    bare_python: Path, tmp_path: Path, carrier: str
) -> None:
    code = f"""
import asyncio, towpath, towpath.aio
for connect in (towpath.connect, lambda url: asyncio.run(towpath.aio.connect(url))):
    try:
        connect("{carrier}://127.0.0.1:1")
    except towpath.errors.NotSupported as error:
        print(error.hint)
"""
    assert run(bare_python, "-c", code, cwd=tmp_path) == 2 * f"pip install 'towpath[{carrier}]'\n"
