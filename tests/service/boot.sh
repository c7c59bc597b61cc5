#!/bin/bash
# boot.sh DIR CHECKOUT: a real systemd as PID 1 of a throw-away copy of this machine, in namespaces of its own.
#
# The copy is an overlay of /, so every path is the same and nothing written inside lasts; /tmp, /run and /dev are empty and new.
# A CHECKOUT that is below /tmp is there all the same.
# What lies in DIR/copy is laid over it. Ends when that systemd is halted, or when this process is killed.
#
# systemd takes over the cgroups that it finds. So first of all this process moves itself into cgroups of its own below the current ones,
# and the cgroup namespace makes those look like the roots: the machine's own are out of reach.
set -eu
dir=$1
checkout=$2
mkdir -p "$dir/root"

while IFS=: read -r _ controllers path; do
    hierarchy=${controllers#name=}
    hierarchy=${hierarchy:-unified}
    # A new cpuset has no cpus and takes nobody in.
    [ "$hierarchy" = cpuset ] && continue
    parent=/sys/fs/cgroup/$hierarchy${path%/}
    [ -d "$parent" ] || continue
    mkdir -p "$parent/towpath-test-$$"
    echo $$ >"$parent/towpath-test-$$/cgroup.procs"
done </proc/self/cgroup

# shellcheck disable=SC2016
exec unshare --mount --pid --fork --cgroup --uts --ipc --net --kill-child bash -c '
set -eu
dir=$0
checkout=$1
mount --make-rprivate /
ip link set lo up
mount -t tmpfs -o mode=755 tmpfs "$dir/root"
mkdir "$dir/root/upper" "$dir/root/work" "$dir/root/merged"
root=$dir/root/merged
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/root/upper,workdir=$dir/root/work" "$root"

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
while IFS=: read -r _ controllers _; do
    hierarchy=${controllers#name=}
    hierarchy=${hierarchy:-unified}
    [ "$hierarchy" = cpuset ] && continue
    mkdir -p "$root/sys/fs/cgroup/$hierarchy"
    case $controllers in
        "") mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/$hierarchy" ;;
        name=*) mount -t cgroup -o "none,$controllers" cgroup "$root/sys/fs/cgroup/$hierarchy" ;;
        *) mount -t cgroup -o "$controllers" cgroup "$root/sys/fs/cgroup/$hierarchy" ;;
    esac
done </proc/self/cgroup
# Where there is only cgroup2, systemd wants it at the top.
[ "$(ls "$root/sys/fs/cgroup")" = unified ] && mount --move "$root/sys/fs/cgroup/unified" "$root/sys/fs/cgroup"

for place in run dev; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
if [ "${checkout#/tmp/}" != "$checkout" ]; then
    mkdir -p "$root$checkout"
    mount --bind "$checkout" "$root$checkout"
fi
mkdir "$root/dev/pts" "$root/dev/shm"
for node in null zero full random urandom tty; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
# Kernel parameters are the machine s, not the copy s.
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,ro,bind "$root/proc/sys"

rm -f "$root/etc/machine-id" "$root/etc/fstab"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
cp -a "$dir/copy/." "$root/"

cd "$root"
mkdir .old
pivot_root . .old
umount -l /.old
exec env -i container=towpath-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=basic.target --log-target=journal --show-status=0
' "$dir" "$checkout"
