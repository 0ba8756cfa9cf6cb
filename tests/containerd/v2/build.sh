#!/usr/bin/env bash
# Builds containerd 2.x and its shim, once, and prints the folder they are in. runc and ctr are Debian's: see ../fetch.sh.
#
# The folder's name is the version and a hash of what the programs are made from, so a change makes a new one and nothing is ever stale. Modules
# come through the go command as this machine has it set up.
set -euo pipefail
cd "$(dirname "$0")"

module=github.com/containerd/containerd/v2
version=$(sed -n "s#^[[:space:]]*\(require \)\{0,1\}$module \(v[0-9.]*\)\( .*\)\{0,1\}\$#\2#p" go.mod)
[ -n "$version" ] || { echo "containerd: go.mod does not tell the version of $module" >&2; exit 1; }
what=containerd
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/containerd-v2
out=$cache/$version-$(cat build.sh ../../go.sh go.mod go.sum | sha256sum | cut -c1-16)
. ../../go.sh

echo "containerd: building $version with $(go env GOVERSION) (once; two minutes of one processor)" >&2
# No C: the programs then run on any Debian, in a guest too.
CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -p=2" nice go build -mod=readonly -trimpath -ldflags "-s -w -X $module/version.Version=$version" \
  -o "$work/out/" "$module/cmd/containerd" "$module/cmd/containerd-shim-runc-v2" >&2
"$work/out/containerd" --version | grep -qF " $version " || fail "the containerd that was built tells another version than $version"
finish
