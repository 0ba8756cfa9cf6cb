#!/usr/bin/env bash
# Fetches the definitions of the kinds of others that the chart makes, once, and prints the folder they are in: cert-manager's and the Prometheus
# operator's, out of their Go modules.
set -euo pipefail
cd "$(dirname "$0")"

# module version sum: file ...
modules=(
  "github.com/cert-manager/cert-manager v1.21.2 h1:UWgoYM+KLNtRlqmoWOKjKBOBUPVHeepQ6/ac3ERJW68= deploy/crds/cert-manager.io_certificates.yaml"
  "github.com/prometheus-operator/prometheus-operator v0.85.0 h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s= example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml"
)
what=definitions
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/definitions
out=$cache/$(cat definitions.sh ../go.sh | sha256sum | cut -c1-16)
. ../go.sh

for line in "${modules[@]}"; do
  read -r module version sum files <<<"$line"
  told=$(go mod download -json "$module@$version") || fail "$module $version cannot be had: $told"
  field() { sed -n "s/^[[:space:]]*\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p" <<<"$told"; }
  [ "$(field Sum)" = "$sum" ] || fail "$module $version has the sum $(field Sum), not $sum"
  for file in $files; do install -m 644 "$(field Dir)/$file" "$work/out/"; done
done
finish
