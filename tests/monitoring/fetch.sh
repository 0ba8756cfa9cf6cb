#!/usr/bin/env bash
# Takes promtool out of Debian's package of Prometheus into a folder of the cache, once, and prints that folder. Nothing is installed.
set -euo pipefail
umask 022

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/promtool
version() { apt-cache show --no-all-versions prometheus 2>/dev/null | sed -n 's/^Version: //p' | sed -n 1p; }
fail() {
  echo "promtool: $*" >&2
  exit 1
}

command -v apt-get >/dev/null 2>&1 || fail "this is no Debian: there is no apt-get to fetch prometheus with"
if [ -z "$(version)" ]; then
  if [ "$(id -u)" = 0 ]; then apt-get update -qq; else sudo apt-get update -qq; fi >&2
fi
found=$(version)
[ -n "$found" ] || fail "apt knows no package prometheus"
folder=$cache/${found//[^A-Za-z0-9._-]/_}

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
    (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download prometheus) >&2
    mkdir "$work/out"
    dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar --extract --directory "$work/out" --strip-components=3 ./usr/bin/promtool
    mv "$work/out" "$folder"
  fi
fi
echo "$folder"
