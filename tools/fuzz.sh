#!/bin/sh
# The second half of `make fuzz`: atheris on each target of tests/fuzz, for so many seconds each. What it finds worth
# keeping goes to build/fuzz/TARGET, and an input that breaks something to build/fuzz/TARGET-crash-*.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:?seconds for each target}
python=$PWD/.venv/bin/python

if ! "$python" -c 'import atheris' 2>/dev/null; then
    PIP_CONSTRAINT=constraints.txt "$python" -m pip install -q --disable-pip-version-check --only-binary :all: atheris || {
        echo "fuzz: there is no atheris for this Python; tests/fuzz/test_corpus.py runs without it"
        exit 1
    }
fi
for target in $("$python" -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)'); do
    echo "fuzz: $target for $seconds s"
    mkdir -p "build/fuzz/$target"
    "$python" -m tests.fuzz.fuzz_one "$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/$target-" "build/fuzz/$target" "tests/fuzz/corpus/$target" \
        2>&1 | grep -E 'Traceback|Exception|Error|stat::number_of_executed_units|artifact|^  ' || true
    if ls "build/fuzz/$target"-* >/dev/null 2>&1; then
        echo "fuzz: $target breaks on: $(ls "build/fuzz/$target"-*)"
        exit 1
    fi
done
