#!/bin/sh
# `make check`: every check runs, even when one before it has failed, so that one run tells all.
set -u
cd "$(dirname "$0")/.."
bin=$PWD/.venv/bin
failed=""

check() {
    title=$1
    shift
    echo "check: $title"
    "$@" || failed="$failed, $title"
}

# A header must stand alone: it compiles as the only include of a C program, before anything that it might lean on.
c_headers() {
    for header in clients/c/*.h; do
        echo "#include \"$(basename "$header")\"" |
            gcc -std=c11 -Wall -Wextra -Werror -fsyntax-only -I clients/c -x c - || return 1
    done
}

# What others compile, as they may: C and C++, by gcc and by clang, which `zig cc` is.
c_client() {
    export ZIG_GLOBAL_CACHE_DIR="$PWD/.venv/.zig"
    object=$(mktemp)
    for compiler in gcc "$bin/python -m ziglang cc"; do
        for program in clients/c/examples/*.c; do
            for language in "c -std=c11" "c++ -std=c++11"; do
                # shellcheck disable=SC2086
                $compiler -x $language -Wall -Wextra -Werror -I clients/c -c "$program" -o "$object" || return 1
            done
        done
    done
    rm "$object"
}

c_extensions() {
    include=$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    # As system headers, since what they warn of is not ours to mend.
    gcc -std=c11 -Wall -Wextra -Werror -fsyntax-only -isystem "$include" -I clients/c -I clients/python/towpath \
        clients/python/towpath/_ring*.c || return 1
    gcc -std=c11 -Wall -Wextra -Werror -fsyntax-only -D_GNU_SOURCE -isystem "$include" -I clients/python/towpath \
        broker/towpath_broker/gateways/bridge/_native*.c
}

generated_code() {
    "$bin/python" -m pytest -q --no-header tests/project/test_generated_code.py
}

check "format" "$bin/ruff" format --check --quiet .
check "lint" "$bin/ruff" check --quiet .
check "types" "$bin/mypy"
# Without its cache, which does not notice that an imported name has become a module.
check "layers" "$bin/lint-imports" --no-logo --no-cache
check "protos" "$bin/buf" lint
check "proto format" "$bin/buf" format --diff --exit-code
check "generated code" generated_code
check "C headers" c_headers
check "C client" c_client
check "C extensions" c_extensions

if [ -n "$failed" ]; then
    echo "check: failed: ${failed#, }"
    exit 1
fi
echo "check: all passed"
