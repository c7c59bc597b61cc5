"""Generate `towpath.v1` (messages, type stubs, gRPC stubs) from protos/towpath/v1.

Theory of operation: the directory structure of protos/ is the package structure of clients/python, so the
generated modules import each other as `from towpath.v1 import x_pb2`. The generator is the grpcio-tools
that constraints.txt pins; the result is checked in and tests/project fails when it differs.

Not here: linting the protos (buf, through `make check`).
"""

from __future__ import annotations

import argparse
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("towpath", "v1")
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generated_files(out: Path) -> dict[str, Path]:
    """List the generated files under `out`, by name."""
    return {path.name: path for pattern in PATTERNS for path in sorted((out / PACKAGE).glob(pattern))}


def generate(out: Path) -> list[Path]:
    """Generate all modules under `out`, removing those whose proto is gone.

    Args:
        out: An existing directory; `towpath/v1` is made in it.

    Returns:
        What was written.

    Raises:
        SystemExit: protoc refused a file and has said why.
    """
    (out / PACKAGE).mkdir(parents=True, exist_ok=True)
    for stale in generated_files(out).values():
        stale.unlink()
    # The plug-ins of mypy-protobuf lie beside the interpreter, which need not be on PATH.
    plugins = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={resources.files('grpc_tools') / '_proto'}",
            *(f"--plugin={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *(str(path) for path in sorted((PROTOS / PACKAGE).glob("*.proto"))),
        ]
    )
    if status != 0:
        sys.exit(status)
    drop_empty_stubs(out)
    return list(generated_files(out).values())


def drop_empty_stubs(out: Path) -> None:
    """Remove the gRPC modules of protos without a service: they hold nothing but an import of grpc."""
    for messages in (out / PACKAGE).glob("*_pb2.py"):
        grpc_module = messages.with_name(f"{messages.stem}_grpc.py")
        if grpc_module.exists() and "Stub" not in grpc_module.read_text():
            grpc_module.unlink()
            grpc_module.with_suffix(".pyi").unlink(missing_ok=True)


def main() -> None:
    """Generate into clients/python, or into another directory for comparison."""
    parser = argparse.ArgumentParser(description="Generate the Python code of protos/towpath/v1.")
    parser.add_argument("--out", type=Path, default=ROOT / "clients" / "python", help="an existing directory")
    written = generate(parser.parse_args().out)
    print(f"proto: {len(written)} files")


if __name__ == "__main__":
    main()
