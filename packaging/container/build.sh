#!/usr/bin/env bash
# Makes the controller's container image: pvelet-controller, pveletctl and the libraries they are linked with, out of nothing.
#
#   packaging/container/build.sh <folder of the programs> <archive to write> [<name>]
#
# The archive is an OCI image layout in a tar file (ctr images import, podman load, skopeo copy oci-archive:...), for the architecture of this
# machine. Libraries are this Debian's own. The same programs, libraries and commit make the same bytes. Needs no root, no daemon and no network.
set -euo pipefail
umask 022

fail() {
  echo "image: $*" >&2
  exit 1
}
[ $# -ge 2 ] || fail "say: $0 <folder of the programs> <archive to write> [<name>]"
bin=$1
archive=$2
top=$(cd "$(dirname "$0")/../.." && pwd)
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$top/Cargo.toml")
name=${3:-localhost/pvelet-controller:$version}
# Who runs in it; 65532 is what such images use.
user=65532
programs=(pvelet-controller pveletctl)
for program in "${programs[@]}"; do [ -x "$bin/$program" ] || fail "$bin/$program is missing: build the programs first (make image does)"; done
command -v dpkg-query >/dev/null || fail "this is no Debian: the image's libraries are taken from Debian's packages"
architecture=$(dpkg --print-architecture)

export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2>/dev/null || echo 0)}
created=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
revision=$(git -C "$top" rev-parse HEAD 2>/dev/null || echo unknown)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/system/etc/pvelet/controller" "$work/programs/usr/bin" "$work/image/blobs/sha256"

# What ldd names, at the path where the loader looks for it, and what its package says of itself: scanners and licences want to know.
libraries=$(ldd "${programs[@]/#/$bin/}" | sed -n 's#^[^/]*[[:space:]]\(/[^ ]*\) (0x.*#\1#p' | sort -u)
for library in $libraries; do
  install -D -m 755 "$(realpath "$library")" "$work/system$library"
  # dpkg may know the file by its path with or without /usr.
  real=$(realpath "$library")
  package=$( (dpkg-query --search "$library" || dpkg-query --search "$real" || dpkg-query --search "${real#/usr}") 2>/dev/null | sed -n '1s/: .*//p')
  [ -n "$package" ] || fail "no package of Debian has $library: build the programs with Debian's own libraries"
  install -d "$work/system/var/lib/dpkg/status.d"
  dpkg-query --status "$package" | grep -v '^Conffiles:\|^ /' >"$work/system/var/lib/dpkg/status.d/${package%:*}"
  install -D -m 644 "/usr/share/doc/${package%:*}/copyright" "$work/system/usr/share/doc/${package%:*}/copyright"
done
# Which Debian the packages are of.
install -m 644 /etc/os-release "$work/system/etc/os-release"
install -D -m 644 "$top/LICENSE" "$work/system/usr/share/doc/pvelet/LICENSE"
echo "pvelet:x:$user:$user:pvelet:/:/usr/sbin/nologin" >"$work/system/etc/passwd"
echo "pvelet:x:$user:" >"$work/system/etc/group"
echo "hosts: files dns" >"$work/system/etc/nsswitch.conf"
for program in "${programs[@]}"; do install -m 755 "$bin/$program" "$work/programs/usr/bin/$program"; done

pack() { tar --create --format=ustar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --directory "$@"; }
hash() { sha256sum | cut -d' ' -f1; }
# Puts a file where the layout wants it and tells its description.
blob() { # <media type> <file>
  local digest size
  digest=$(hash <"$2")
  size=$(stat --format=%s "$2")
  mv "$2" "$work/image/blobs/sha256/$digest"
  printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$1" "$digest" "$size"
}

# Two layers: the lower one stays the same over most releases.
layers=()
unpacked=()
for layer in system programs; do
  pack "$work/$layer" --file "$work/layer.tar" .
  unpacked+=("\"sha256:$(hash <"$work/layer.tar")\"")
  gzip --no-name <"$work/layer.tar" >"$work/layer.tar.gz"
  layers+=("$(blob application/vnd.oci.image.layer.v1.tar+gzip "$work/layer.tar.gz")")
done
joined() { local IFS=,; echo "$*"; }

labels=$(
  cat <<JSON
{"org.opencontainers.image.title":"pvelet-controller",
"org.opencontainers.image.description":"Keeps virtual machines and networks on Proxmox VE hosts as objects of Kubernetes say",
"org.opencontainers.image.version":"$version",
"org.opencontainers.image.revision":"$revision",
"org.opencontainers.image.created":"$created",
"org.opencontainers.image.licenses":"Apache-2.0",
"org.opencontainers.image.source":"$(sed -n 's/^repository = "\(.*\)"/\1/p' "$top/Cargo.toml")"}
JSON
)
cat >"$work/config.json" <<JSON
{"created":"$created","architecture":"$architecture","os":"linux",
"config":{"User":"$user:$user","Entrypoint":["/usr/bin/pvelet-controller"],"Env":["PATH=/usr/bin"],"WorkingDir":"/","Labels":$labels},
"rootfs":{"type":"layers","diff_ids":[$(joined "${unpacked[@]}")]}}
JSON
config=$(blob application/vnd.oci.image.config.v1+json "$work/config.json")
manifest_type=application/vnd.oci.image.manifest.v1+json
cat >"$work/manifest.json" <<JSON
{"schemaVersion":2,"mediaType":"$manifest_type","config":$config,"layers":[$(joined "${layers[@]}")],"annotations":$labels}
JSON
manifest=$(blob "$manifest_type" "$work/manifest.json")
cat >"$work/image/index.json" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[${manifest%\}},
"annotations":{"io.containerd.image.name":"$name","org.opencontainers.image.ref.name":"${name##*:}"}}]}
JSON
echo '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"

mkdir -p "$(dirname "$archive")"
pack "$work/image" --file "$work/archive.tar" oci-layout index.json blobs
mv "$work/archive.tar" "$archive"
echo "image: $name, $(du -h "$archive" | cut -f1), $(sed 's/.*"digest":"\([^"]*\)".*/\1/' <<<"$manifest")" >&2
