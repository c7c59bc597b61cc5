#!/bin/sh
# `make install-c PREFIX=DIR`: the C client's headers, its pkg-config file and its manual page, below DIR. DESTDIR is put
# before every path, as packagers want it. Nothing else of this tree is needed to compile C programs.
set -eu
cd "$(dirname "$0")/.."
prefix=$1
target=${DESTDIR:-}$prefix
case $prefix in
/*) ;;
*)
    echo "install-c: PREFIX must be an absolute path, not '$prefix'" >&2
    exit 2
    ;;
esac
version=$(sed -n 's/^__version__.*"\(.*\)"/\1/p' clients/python/towpath/_version.py)
mkdir -p "$target/include" "$target/lib/pkgconfig" "$target/share/man/man3"
for header in clients/c/*.h; do
    install -m 644 "$header" "$target/include/"
done
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" clients/c/towpath.pc.in >"$target/lib/pkgconfig/towpath.pc"
install -m 644 clients/c/towpath.h.3 "$target/share/man/man3/"
echo "installed towpath.h $version below $target"
