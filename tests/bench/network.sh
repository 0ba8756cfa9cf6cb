#!/usr/bin/env bash
# Runs a program on a Debian with systemd and ifupdown2 that shares this machine's kernel: its own processes, mounts, network and control groups, and
# nothing of the machine's. For measurements that an emulated guest distorts; the kernel may lack VLANs, so it has bridges and veth pairs only.
#
# Usage: network.sh PROGRAM [ARGUMENT...], as root. The program, and all it needs below this repository, is there under the same path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(dirname "$(dirname "$here")")
packages=systemd,systemd-sysv,dbus,ifupdown2,iproute2,python3,procps,binutils,fuse3
masked='systemd-udevd.service systemd-udev-trigger.service systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-logind.service getty.target
  systemd-modules-load.service systemd-sysctl.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer'
release=$(. /etc/os-release; echo "$VERSION_CODENAME")

inside() {
    # The new mount and process namespaces; $1: the root's folder, $2: of its cgroups, "2" or "1".
    root=$1
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    if [ "$2" = 2 ]; then
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    else
        mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
        mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
        mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
    fi
    mount -t tmpfs -o mode=755 tmpfs "$root/run"
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    mount -t tmpfs tmpfs "$root/dev/shm"
    for device in null zero full random urandom tty fuse; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mkdir -p "$root$repository"
    mount --bind "$repository" "$root$repository"
    for n in 1 2; do
        ip link add "eth$n" type veth peer name "peer$n"
        ip link set "peer$n" up
    done
    cd "$root"
    mkdir -p .old
    pivot_root . .old
    umount -l /.old
    exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=null </dev/null
}

if [ "${1:-}" = --inside ]; then
    inside "$2" "$3"
fi

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/bench
base=$cache/$release-$(printf '%s' "$packages $masked" | sha256sum | cut -c1-16)
if [ ! -d "$base" ]; then
    mkdir -p "$cache"
    echo "building $base" >&2
    rm -rf "$base.new"
    . "$repository/tests/debian.sh"
    site=$(debian_site)
    options=()
    while IFS= read -r line; do options+=(--aptopt="$line"); done < <(debian_apt_options)
    keyring=$(debian_keyring)
    mmdebstrap --quiet --variant=minbase --include="$packages" "${options[@]}" "$release" "$base.new" "deb ${keyring:+[signed-by=$keyring] }$site $release main" >&2
    for unit in $masked; do ln -sf /dev/null "$base.new/etc/systemd/system/$unit"; done
    echo pve1 >"$base.new/etc/hostname"
    printf 'auto lo\niface lo inet loopback\n\nauto eth1\niface eth1 inet static\n\taddress 192.0.2.1/24\n\niface eth2 inet manual\n\nsource /etc/network/interfaces.d/*\n' \
        >"$base.new/etc/network/interfaces"
    mv "$base.new" "$base"
fi

# On the disk, so that what is written down costs what it costs.
work=$(mktemp -d "$cache/run.XXXXXX")
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
cgroups=/sys/fs/cgroup kind=2
[ -e /sys/fs/cgroup/cgroup.controllers ] || { cgroups='/sys/fs/cgroup/systemd /sys/fs/cgroup/unified' kind=1; }
group=pvelet-bench-$$
pid=
starter=
clean() {
    [ -z "$starter" ] || kill -KILL "$starter" 2>/dev/null || true
    [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || true
    wait 2>/dev/null || true
    umount -l "$work/root"
    rm -rf "$work"
    for folder in $cgroups; do find "$folder/$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true; done
}
trap clean EXIT
for folder in $cgroups; do mkdir -p "$folder/$group"; done
(
    for folder in $cgroups; do echo "$BASHPID" >"$folder/$group/cgroup.procs"; done
    exec unshare --pid --mount --net --ipc --uts --cgroup --fork --propagation private "${BASH_SOURCE[0]}" --inside "$work/root" "$kind"
) &
starter=$!
for _ in $(seq 300); do
    pid=$(pgrep --parent "$starter" || true)
    [ -z "$pid" ] || ! nsenter -t "$pid" -a /bin/systemctl --quiet is-active networking.service 2>/dev/null || break
    sleep 0.1
done
program=$(realpath "$1")
shift
nsenter -t "$pid" -a /usr/bin/env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin "$program" "$@"
