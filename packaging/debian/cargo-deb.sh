#!/usr/bin/env bash
# Builds cargo-deb into a folder of the cache, once, and prints where the program is.
set -euo pipefail
version=3.8.0
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/tools
folder=$cache/cargo-deb-$version
if [ ! -x "$folder/bin/cargo-deb" ]; then
  mkdir -p "$cache"
  # Whoever comes second waits here, and then finds it made.
  exec 9>"$cache/lock"
  flock 9
  if [ ! -x "$folder/bin/cargo-deb" ]; then
    echo "deb: building cargo-deb $version (once; a minute)" >&2
    # xz does the packing; optimised or not makes no difference then.
    cargo install --quiet --locked --debug --no-default-features --version "$version" --root "$folder" cargo-deb >&2
  fi
fi
echo "$folder/bin/cargo-deb"
