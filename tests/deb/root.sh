#!/usr/bin/env bash
# Makes a root of Debian 12, with what the packages depend on, once, and prints the archive of it. Its name is a hash of what it is made from.
set -euo pipefail
cd "$(dirname "$0")"
umask 022
PATH=$PATH:/usr/sbin:/sbin
. ../debian.sh

suite=bookworm
packages=systemd,libsystemd0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/debian
root=$cache/$suite-$(sha256sum <root.sh | cut -c1-16).tar

if [ ! -f "$root" ]; then
  mkdir -p "$cache"
  # Whoever comes second waits here, and then finds it made.
  exec 9>"$cache/lock"
  flock 9
  if [ ! -f "$root" ]; then
    rm -rf "$cache"/building.*
    site=$(debian_site)
    echo "deb: building a root of Debian 12 (once; a minute)" >&2
    work=$(mktemp -d "$cache/building.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    debian_apt_options >"$work/apt.conf"
    mmdebstrap --quiet --variant=minbase --format=tar --include="$packages" --keyring="$(debian_keyring)" \
      --aptopt="$work/apt.conf" --aptopt='Apt::Install-Recommends "false"' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      --customize-hook='rm -rf "$1"/etc/dpkg/dpkg.cfg.d/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
      "$suite" "$work/root.tar" "deb $site $suite main" </dev/null >&2
    mv "$work/root.tar" "$root"
  fi
fi
echo "$root"
