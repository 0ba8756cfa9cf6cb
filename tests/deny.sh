#!/usr/bin/env bash
# Bans, licences, sources. Advisories need a database that lies outside the package registry: they are looked up only at a release.
set -euo pipefail
version=0.20.2
command -v cargo-deny >/dev/null 2>&1 || cargo install --quiet --locked --debug --version "$version" cargo-deny
cargo deny --log-level error check bans licenses sources
if [ "${PVELET_RELEASE:-}" = 1 ]; then
  cargo deny check advisories
else
  echo "deny: advisories were not checked (PVELET_RELEASE=1 checks them)"
fi
