#!/usr/bin/env bash
# Unpacks Debian's containerd and runc into a folder of the cache, once, and prints that folder. Nothing of them is installed or started.
#
# The folder is named by their versions, so that an update of Debian makes a new one.
set -euo pipefail
umask 022

packages=(containerd runc)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/containerd
version() { apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^Version: //p' | sed -n 1p; }

command -v apt-get >/dev/null 2>&1 || { echo "containerd: this is no Debian: there is no apt-get to fetch ${packages[*]} with" >&2; exit 1; }
if [ -z "$(version containerd)" ]; then
  if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi >&2
fi
name=
for package in "${packages[@]}"; do
  found=$(version "$package")
  [ -n "$found" ] || { echo "containerd: apt knows no package $package" >&2; exit 1; }
  name+=${name:+_}$package-$found
done
folder=$cache/${name//[^A-Za-z0-9._-]/_}

if [ ! -d "$folder" ]; then
  mkdir -p "$cache"
  # Whoever comes second waits here, and then finds it made.
  exec 9>"$cache/lock"
  flock 9
  if [ ! -d "$folder" ]; then
    rm -rf "$cache"/fetching.*
    work=$(mktemp -d "$cache/fetching.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    chmod 755 "$work"
    # As root, apt would give up its rights and then could not write here.
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "${packages[@]}") >&2
    mkdir "$work/programs"
    for package in "$work"/*.deb; do
      dpkg-deb --extract "$package" "$work/programs"
    done
    mkdir "$work/bin"
    find "$work/programs" -type f \( -path '*/usr/bin/*' -o -path '*/usr/sbin/*' \) -exec mv -t "$work/bin" {} +
    mv "$work/bin" "$folder"
  fi
fi
echo "$folder"
