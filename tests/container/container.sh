#!/bin/bash
# container.sh NAME SHM IPC IMAGE... : VOLUME... : COMMAND...
#
# Runs a command as a container would: in mount, PID, UTS, network and IPC namespaces of its own, in a root that holds nothing
# but the image (directories of this machine, read-only), an empty /tmp and /run, /proc, a few devices, and the volumes.
#
# SHM is the directory that is its /dev/shm; beside it its root is mounted. IPC is - for a namespace of its own, or the file of the one to share. A volume is
# SOURCE=TARGET. Its processes end with this one.
set -eu
name=$1 shm=$2 ipc=$3
shift 3
share=(--ipc)
enter=()
user=()
[ "$(id -u)" = 0 ] || user=(--user --map-root-user)
if [ "$ipc" != - ]; then
    share=()
    enter=(nsenter "--ipc=$ipc")
    # Without root the namespace belongs to a user namespace, in which one has to be.
    [ "$(id -u)" = 0 ] || { user=() && enter+=("--user=${ipc%ipc}user" --preserve-credentials); }
fi

# shellcheck disable=SC2016
exec "${enter[@]}" unshare "${user[@]}" --mount --pid --fork --uts --net "${share[@]}" --kill-child bash -c '
set -eu
name=$0 shm=$1
shift
mount --make-rprivate /
ip link set lo up 2>/dev/null || true
root=$shm.$name
mkdir "$root"
mount -t tmpfs -o mode=755 tmpfs "$root"
mkdir -p "$root/proc" "$root/dev/shm" "$root/tmp" "$root/run" "$root/var/lib"
chmod 1777 "$root/tmp"
while [ "$1" != : ]; do
    if [ -L "$1" ]; then
        mkdir -p "$root$(dirname "$1")"
        cp -P "$1" "$root$1"
    else
        mkdir -p "$root$1"
        mount --rbind "$1" "$root$1"
        mount -o remount,bind,ro "$root$1" 2>/dev/null || true
    fi
    shift
done
shift
for node in null zero full random urandom; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mount --bind "$shm" "$root/dev/shm"
while [ "$1" != : ]; do
    mkdir -p "$root${1#*=}"
    mount --bind "${1%%=*}" "$root${1#*=}"
    shift
done
shift
mount -t proc proc "$root/proc"
ln -s /proc/self/fd "$root/dev/fd"
cd "$root"
mkdir .old
pivot_root . .old
umount -l /.old
hostname "$name" 2>/dev/null || true
exec "$@"
' "$name" "$shm" "$@"
