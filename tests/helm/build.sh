#!/usr/bin/env bash
# Builds helm, with which the chart is tested, once, and prints the folder it is in.
#
# The folder's name is helm's version and a hash of what it is made from, so a change makes a new one and nothing is ever stale. Modules come
# through the go command as this machine has it set up.
set -euo pipefail
cd "$(dirname "$0")"

module=helm.sh/helm/v4
version=$(sed -n "s#^[[:space:]]*\(require \)\{0,1\}$module \(v[0-9.]*\)\( .*\)\{0,1\}\$#\2#p" go.mod)
[ -n "$version" ] || { echo "helm: go.mod does not tell the version of $module" >&2; exit 1; }
what=helm
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/helm
out=$cache/$version-$(cat build.sh ../go.sh go.mod go.sum | sha256sum | cut -c1-16)
. ../go.sh

echo "helm: building $version with $(go env GOVERSION) (once; two minutes of one processor)" >&2
CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -p=2" nice go build -mod=readonly -trimpath -ldflags "-s -w -X $module/internal/version.version=$version" \
  -o "$work/out/" "$module/cmd/helm" >&2
[ "$("$work/out/helm" version --template '{{.Version}}')" = "$version" ] || fail "the helm that was built tells another version than $version"
finish
