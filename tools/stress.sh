#!/bin/sh
# For the long tests: install stress-ng where root and apt are there. Without it those that kill things under load run
# beside a program of their own (tests/bridge/programs/busy.c).
set -eu
command -v stress-ng >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "test-long: installing stress-ng" >&2
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends stress-ng; } \
        >/dev/null 2>&1 && exit 0
fi
echo "test-long: going on without stress-ng, beside a load of our own; to have it: apt-get install stress-ng" >&2
