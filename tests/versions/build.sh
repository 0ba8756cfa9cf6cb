#!/usr/bin/env bash
# Builds the agent and the controller as they were before the last commit that changed them, once, and prints the folder they are in.
# `PVELET_PREVIOUS=<commit>` names another commit, such as the tag of a release.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "versions: $*" >&2; exit 1; }
parts=(agent controller proto Cargo.toml Cargo.lock)
commit=${PVELET_PREVIOUS:-}
if [ -z "$commit" ]; then
  last=$(git log -1 --format=%H -- "${parts[@]}") || fail "this is no clone of the repository; the version before this one is not known"
  commit=$last^
fi
commit=$(git rev-parse --quiet --verify "$commit^{commit}") \
  || fail "the commit before this one is missing; fetch it (git fetch --unshallow), or name one with PVELET_PREVIOUS=<commit>"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/versions
out=$cache/$commit
if [ ! -d "$out" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/.new.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir "$work/source" "$work/out"
  git archive "$commit" | tar -x -C "$work/source"
  echo "versions: building $(git log -1 --format='%h of %cs' "$commit") (once; minutes)" >&2
  (cd "$work/source" && CARGO_INCREMENTAL=0 CARGO_TARGET_DIR="$OLDPWD/target/previous" nice "${CARGO:-cargo}" build --quiet --locked --bins \
    --package pvelet-agent --package pvelet-controller --features pvelet-agent/crash-points,pvelet-controller/crash-points) >&2
  for name in pvelet-agent pvelet-controller pveletctl; do strip -o "$work/out/$name" "target/previous/debug/$name"; done
  # Whoever was first has the folder; both are the same.
  mv -T "$work/out" "$out" 2>/dev/null || [ -d "$out" ]
fi
echo "$out"
