#!/usr/bin/env bash
# Builds the programs of Kubernetes that tests run, once, and prints the folder they are in: kube-apiserver, kube-controller-manager, kubelet and
# kubectl (one binary, called by four names) and etcd (Debian's).
#
# The folder's name is the version of Kubernetes and a hash of what the programs are made from, so a change makes a new one and nothing is ever
# stale. Modules come through the go command as this machine has it set up.
set -euo pipefail
cd "$(dirname "$0")"

module=k8s.io/kubernetes
names=(kube-apiserver kube-controller-manager kubelet kubectl)
version=$(sed -n "s#^\(require\)\{0,1\}[[:space:]]*$module \(v[0-9.]*\)\$#\2#p" go.mod)
[ -n "$version" ] || { echo "kubernetes: go.mod does not tell the version of $module" >&2; exit 1; }
what=kubernetes
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/kubernetes
out=$cache/$version-$(cat build.sh ../go.sh go.mod go.sum main.go | sha256sum | cut -c1-16)
. ../go.sh

# etcd: the one that is installed, else the program out of Debian's package. Installing the package would start a daemon.
if etcd=$(command -v etcd); then
  ln -s "$etcd" "$work/out/etcd"
else
  (cd "$work" && apt-get -qq -o APT::Sandbox::User=root download etcd-server >log 2>&1) \
    || { cat "$work/log" >&2; fail "Debian's package etcd-server cannot be downloaded; run apt-get update, or install an etcd, then run again"; }
  dpkg-deb -x "$work"/etcd-server_*.deb "$work/etcd"
  install -m 755 "$work/etcd/usr/bin/etcd" "$work/out/etcd"
fi

echo "kubernetes: building $version with $(go env GOVERSION) (once; minutes)" >&2
stamps=""
part() { echo "${version#v}" | cut -d. -f"$1"; }
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  stamps+=" -X $package.gitVersion=$version -X $package.gitMajor=$(part 1) -X $package.gitMinor=$(part 2) -X $package.gitTreeState=archive"
done
# No C: the programs then run on any Debian, in a guest too.
CGO_ENABLED=0 GOFLAGS="${GOFLAGS:-} -p=2" nice go build -mod=readonly -trimpath -ldflags "-s -w$stamps" -o "$work/out/kubernetes" . >&2
for name in "${names[@]}"; do ln -s kubernetes "$work/out/$name"; done
[ "$("$work/out/kubelet" --version)" = "Kubernetes $version" ] || fail "the kubelet that was built tells another version than $version"

finish
