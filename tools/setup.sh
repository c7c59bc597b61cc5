#!/bin/sh
# Find (or, as root with apt, install) a Python that is new enough and hand over to tools/setup_environment.py,
# which does the rest. This file is shell because it must run where there is no Python yet.
set -eu
cd "$(dirname "$0")/.."

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# The environment's own interpreter, if it was completed in this very place (scripts in it hold its path): nothing
# to look for, and no launcher to go through.
if [ "$(cat .venv/.created 2>/dev/null)" = "$(pwd -P)" ] && new_enough .venv/bin/python; then
    exec .venv/bin/python tools/setup_environment.py "$@"
fi

find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            found=$candidate
            return 0
        fi
    done
    return 1
}

if ! find_python && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: no Python 3.11 or newer here; asking apt for one" >&2
    apt-get update -q >&2
    for package in python3 python3.13 python3.12 python3.11; do
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$package" >&2 || continue
        ! find_python || break
    done
fi
if ! find_python; then
    echo "setup: Python 3.11 or newer is needed and was not found; install python3.11, python3.11-venv and python3.11-dev (or newer), or say PYTHON=/path/to/python" >&2
    exit 1
fi
if [ "$found" != python3 ]; then
    echo "setup: using $found, because python3 is older than 3.11 or PYTHON says so" >&2
fi
exec "$found" tools/setup_environment.py "$@"
