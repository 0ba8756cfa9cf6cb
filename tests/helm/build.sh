#!/usr/bin/env bash
# Builds helm, with which the chart is tested, once, and prints the folder it is in.
#
# The folder's name is helm's version and a hash of what it is made from, so a change makes a new one and nothing is ever stale. Modules come
# through the go command as this machine has it set up.
set -euo pipefail
cd "$(dirname "$0")"
umask 022

module=helm.sh/helm/v4
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/helm
fail() {
  echo "helm: $*" >&2
  exit 1
}
version=$(sed -n "s#^\(require\)\{0,1\}[[:space:]]*$module \(v[0-9.]*\)\( //.*\)\{0,1\}\$#\2#p" go.mod)
[ -n "$version" ] || fail "go.mod does not tell the version of $module"
out=$cache/$version-$(cat build.sh go.mod go.sum | sha256sum | cut -c1-16)

if [ ! -d "$out" ]; then
  mkdir -p "$cache"
  # Whoever comes second waits here, and then finds it made.
  exec 9>"$cache/lock"
  flock 9
fi
if [ ! -d "$out" ]; then
  rm -rf "$cache"/building.*
  work=$(mktemp -d "$cache/building.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  mkdir "$work/out"

  # Go: what is on the PATH, else where its own archive and Debian's versioned packages put it.
  PATH=$PATH:/usr/local/go/bin
  for dir in /usr/lib/go-*/bin; do PATH=$PATH:$dir; done
  want=$(sed -n 's/^go //p' go.mod)
  command -v go >/dev/null || fail "there is no go here; install Go $want or newer, then run again"
  # An older go takes the version that go.mod asks for as a module, where it may. Here it says so when it may not.
  if ! go list -m >"$work/log" 2>&1; then
    cat "$work/log" >&2
    fail "$(command -v go) is too old and cannot take a newer one by itself; install Go $want or newer, then run again"
  fi

  echo "helm: building $version with $(go env GOVERSION) (once; minutes)" >&2
  stamp="-X $module/internal/version.version=$version"
  CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -p=2" nice go build -mod=readonly -trimpath -ldflags "-s -w $stamp" -o "$work/out/helm" "$module/cmd/helm" >&2
  told=$("$work/out/helm" version --template '{{.Version}}')
  [ "$told" = "$version" ] || fail "the helm that was built tells $told, not $version"
  mv -T "$work/out" "$out"
  echo "helm: built in $SECONDS s, $(du -sh "$out" | cut -f1)" >&2
fi
echo "$out"
