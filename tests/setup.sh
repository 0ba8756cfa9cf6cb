#!/usr/bin/env bash
# Installs what a fresh Debian machine lacks for building and testing. Does nothing, and says nothing, where all is there.
# `setup.sh guests`: also what the test guests need. `setup.sh containerd`: also Debian's containerd and runc, unpacked in the cache.
# `setup.sh deb`: also what makes and tries Debian packages.
# `setup.sh ansible`: also the Python that Ansible is installed into an environment of.
# `setup.sh kubernetes`: also what builds the programs of Kubernetes, and containerd 2.x.
set -euo pipefail
cd "$(dirname "$0")/.."

# command or file that must exist -> Debian package
need=(
  "cc:build-essential"
  "pkg-config:pkg-config"
  "git:git"
  "qemu-img:qemu-utils"
  "fusermount3:fuse3"
  "dbus-daemon:dbus-daemon"
  "openssl:openssl"
  "ip:iproute2"
  "/lib/systemd/systemd-journal-remote:systemd-journal-remote"
)
if [ "${1:-}" = deb ]; then
  need+=(
    "dpkg-parsechangelog:dpkg-dev"
    "lintian:lintian"
    "systemd-analyze:systemd"
    "mmdebstrap:mmdebstrap"
    "newuidmap:uidmap"
  )
fi
if [ "${1:-}" = guests ]; then
  need+=(
    "qemu-system-x86_64:qemu-system-x86"
    "mmdebstrap:mmdebstrap"
    "mke2fs:e2fsprogs"
    "ssh:openssh-client"
    "fakeroot:fakeroot"
    "newuidmap:uidmap"
    "setpriv:util-linux"
  )
  # mke2fs is there even where the folders of root are not searched.
  PATH=$PATH:/usr/sbin:/sbin
fi
if [ "${1:-}" = ansible ]; then need+=("python3:python3" "ssh:openssh-client"); fi
missing=()
for pair in "${need[@]}"; do
  command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
done
pkg-config --exists libsystemd 2>/dev/null || missing+=("libsystemd-dev")
if [ "${1:-}" = ansible ] && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then missing+=("python3-venv"); fi
# Debian 12 before its last updates does not know the keys of Debian 13.
if [ "${1:-}" = guests ] && ! ls /usr/share/keyrings/debian-archive-trixie-stable.* >/dev/null 2>&1; then missing+=("debian-archive-keyring"); fi

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null 2>&1 || { echo "setup: install these yourself, this is no Debian: ${missing[*]}" >&2; exit 1; }
  echo "setup: installing ${missing[*]}"
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if ! command -v cargo >/dev/null 2>&1; then
  echo "setup: installing Rust by Debian's rustup"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustup >/dev/null 2>&1 \
    || { echo "setup: this Debian has no rustup package; install Rust $want or newer by rustup, then run again" >&2; exit 1; }
  rustup toolchain install stable --profile minimal --component clippy,rustfmt
fi
have=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$want" "$have" | sort -V | head -n1)" != "$want" ]; then
  echo "setup: Rust $have is too old, $want is needed: rustup update stable" >&2
  exit 1
fi
[ -c /dev/fuse ] || echo "setup: /dev/fuse is missing: the simulated host cannot mount its cluster file system here" >&2
if [ "${1:-}" = containerd ]; then tests/containerd/fetch.sh >/dev/null; fi

if [ "${1:-}" = kubernetes ]; then
  # Debian's golang-go takes the version that go.mod asks for by itself, as a module, where it is new enough to do that (Debian 13: yes, 12: no).
  candidate() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \(.*\)/\1/p' | grep -v none || true; }
  if [ -z "$(candidate etcd-server)" ]; then as_root apt-get update -qq; fi
  if ! PATH=$PATH:/usr/local/go/bin command -v go >/dev/null 2>&1 && ! ls /usr/lib/go-*/bin/go >/dev/null 2>&1; then
    if dpkg --compare-versions "$(candidate golang-go)" ge 2:1.21; then
      echo "setup: installing golang-go"
      as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go >/dev/null
    else
      echo "setup: this Debian has no new enough Go; install Go $(sed -n 's/^go //p' tests/kubernetes/go.mod tests/containerd/v2/go.mod | sort -V | tail -n1) or newer (into /usr/local/go, say), then run again" >&2
      exit 1
    fi
  fi
fi
