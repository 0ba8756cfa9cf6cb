#!/usr/bin/env bash
# Builds the Debian 13 image that test guests boot from, once, and prints the folder it is in.
#
# The folder holds base.qcow2, vmlinuz and initrd (the kernel is booted directly: no boot loader, no partitions), and the keys
# of ssh, made here. Its name is a hash of what the image is made from, so a change makes a new one and nothing is ever stale.
set -euo pipefail
cd "$(dirname "$0")"
umask 022
PATH=$PATH:/usr/sbin:/sbin
. ../debian.sh

suite=trixie
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/guests
packages=$(sed -e 's/#.*//' -e '/^ *$/d' packages.txt)
image=$cache/$(cat build-image.sh customize.sh packages.txt | sha256sum | cut -c1-16)

if [ -f "$image/base.qcow2" ]; then
  echo "$image"
  exit 0
fi
mkdir -p "$cache"
# Whoever comes second waits here, and then finds the image made.
exec 9>"$cache/lock"
flock 9
rm -rf "$cache"/building.*
if [ -f "$image/base.qcow2" ]; then
  echo "$image"
  exit 0
fi

site=$(debian_site)
echo "build-image: building the guest image from $suite (once; minutes)" >&2
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/image"
ssh-keygen -q -t ed25519 -N '' -C pvelet-guest -f "$work/image/key"
ssh-keygen -q -t ed25519 -N '' -C pvelet-guest -f "$work/host_key"
echo "pvelet-guest $(cut -d' ' -f1,2 "$work/host_key.pub")" >"$work/image/known_hosts"

debian_apt_options >"$work/apt.conf"

mmdebstrap --quiet --variant=minbase --format=tar \
  --include="$(echo $packages | tr ' ' ,)" \
  --keyring="$(debian_keyring)" \
  --aptopt="$work/apt.conf" --aptopt='Apt::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
  --essential-hook='mkdir -p "$1/usr/share/initramfs-tools/modules.d" "$1/etc/initramfs-tools/conf.d"' \
  --essential-hook='printf "%s\n" virtio_pci virtio_blk ext4 >"$1/usr/share/initramfs-tools/modules.d/guest"' \
  --essential-hook='printf "%s\n" MODULES=list COMPRESS=gzip >"$1/etc/initramfs-tools/conf.d/guest"' \
  --customize-hook="upload '$work/image/key.pub' /root/authorized_keys" \
  --customize-hook="upload '$work/host_key' /root/host_key" \
  --customize-hook="upload customize.sh /root/customize.sh" \
  --customize-hook='chroot "$1" bash /root/customize.sh' \
  "$suite" "$work/root.tar" "deb $site $suite main" </dev/null >&2

# Into an ext4 image by mke2fs: no loop device, no mount, and no root (fakeroot keeps the owners of the files in mind).
cat >"$work/pack.sh" <<'EOF'
set -euo pipefail
cd "$1"
mkdir root
tar -xf root.tar -C root --exclude='./dev/*'
rm root.tar
mv root/boot/out/vmlinuz image/vmlinuz
mv root/boot/out/initrd image/initrd
truncate -s 4G root.raw
mke2fs -q -t ext4 -d root root.raw
EOF
if [ "$(id -u)" = 0 ]; then bash "$work/pack.sh" "$work"; else fakeroot bash "$work/pack.sh" "$work"; fi
qemu-img convert -O qcow2 "$work/root.raw" "$work/image/base.qcow2"
chmod 600 "$work/image/key"
mv -T "$work/image" "$image"
echo "build-image: built in $SECONDS s, $(du -sh "$image" | cut -f1)" >&2
echo "$image"
