#!/usr/bin/env bash
# Makes the Debian packages of programs that cargo has built, and prints them, their sizes and what lintian says.
#
# Usage: build.sh release|debug [VERSION] [OUT]; VERSION is that of packaging/debian/changelog and Cargo.toml unless given, OUT target/debian.
set -euo pipefail
cd "$(dirname "$0")/../.."
umask 022
PATH=$PATH:/usr/sbin:/sbin
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"

build=$1 version=${2:-} out=${3:-target/debian}
own=packaging/debian
made=target/package
# The newest glibc and systemd that the oldest supported Debian (12) has.
glibc=2.36
systemd=252
fail() {
  echo "deb: $*" >&2
  exit 1
}

[ "$build" = release ] || [ "$build" = debug ] || fail "'$build' is neither release nor debug"
for program in pvelet-agent pveletctl; do
  [ -x "target/$build/$program" ] || fail "target/$build/$program is missing: build it first"
done
# Test builds are unpacked more often than they are carried anywhere.
if [ "$build" = release ]; then profile=release fast=; else profile=dev fast='--fast --compress-type gz'; fi
if [ "$build" = release ] && grep -aq PVELET_CRASH_AT target/release/pvelet-agent; then
  fail "target/release/pvelet-agent is a build for tests (crash points): cargo build --release --package pvelet-agent --package pvelet-controller"
fi
if [ -z "$version" ]; then
  version=$(dpkg-parsechangelog --file "$own/changelog" --show-field Version)
  cargo=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
  [ "${version%-*}" = "$cargo" ] || fail "$own/changelog is of version $version, Cargo.toml of $cargo: write an entry"
fi

# A program runs where the libraries are as new as those it was linked with; the packages' Depends say so too.
note=
newest() { objdump -T "$1" | grep -oE "\b$2_[0-9.]+" | sed "s/^$2_//" | sort -Vu | tail -n 1; }
for program in pvelet-agent pveletctl; do
  for pair in "GLIBC $glibc" "LIBSYSTEMD $systemd"; do
    found=$(newest "target/$build/$program" "${pair% *}" || true)
    [ "$(printf '%s\n' "${found:-0}" "${pair#* }" | sort -V | tail -n 1)" = "${pair#* }" ] ||
      note="deb: $program needs ${pair% *}_$found, Debian 12 has ${pair#* }: these packages are for $(. /etc/os-release && echo "$PRETTY_NAME") and later; build on Debian 12 for both"
  done
done

# What the programs tell of themselves. One at a time: the manifests name this folder.
mkdir -p "$out"
exec 8>target/package.lock
flock 8
rm -rf "$made"
mkdir -p "$made"
for program in pvelet-agent pveletctl; do
  "target/$build/$program" generate-man "$made/$program/man"
  mkdir -p "$made/$program"/completion/{bash,zsh,fish}
  "target/$build/$program" completion bash >"$made/$program/completion/bash/$program"
  "target/$build/$program" completion zsh >"$made/$program/completion/zsh/_$program"
  "target/$build/$program" completion fish >"$made/$program/completion/fish/$program.fish"
  gzip -9n <CHANGELOG.md >"$made/$program/changelog.gz"
done
"target/$build/pvelet-agent" example-config >"$made/agent.toml"

# The same sources give the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
tool=$("$own/cargo-deb.sh")
packages=()
# cargo-deb empties target/debian of the packages of these names, wherever it is to put the new ones: what somebody has built there stays. So it
# has a target folder of its own, in which only the programs are.
own_target=$PWD/$made/target
mkdir -p "$own_target"
ln -s "$PWD/target/$build" "$own_target/$build"
for package in pvelet-agent pvelet-controller; do
  packages+=("$(CARGO_TARGET_DIR=$own_target "$tool" --quiet --package "$package" --no-build --profile "$profile" --no-dbgsym --strip $fast --deb-version "$version" --output "$out/")")
done

for package in "${packages[@]}"; do
  printf '%s  %s installed, %s\n' "$(realpath --relative-to=. "$package")" \
    "$(dpkg-deb --field "$package" Installed-Size | awk '{printf "%.1f MiB", $1 / 1024}')" "$(stat -c %s "$package" | awk '{printf "%.1f MiB", $1 / 1048576}')"
done
lintian --allow-root --fail-on error,warning --tag-display-limit 0 --color never "${packages[@]}" || fail "lintian: not clean"
echo "lintian: clean"
[ -z "$note" ] || echo "$note" >&2
