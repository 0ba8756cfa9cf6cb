#!/usr/bin/env bash
# Builds the agent and the controller as they were before the last commit that changed them, once, and prints the folder they are in.
# `PVELET_PREVIOUS=<commit>` names another commit, such as the tag of a release. With `--known` it builds nothing and only tells, by its exit
# status and one line, whether that commit is known here.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "versions: $*" >&2; exit 1; }
parts=(agent controller proto Cargo.toml Cargo.lock)
commit=${PVELET_PREVIOUS:-}
if [ -z "$commit" ]; then
  last=$(git log -1 --format=%H -- "${parts[@]}" 2>/dev/null) || fail "this is no clone of the repository; the version before this one is not known here"
  commit=$last^
fi
commit=$(git rev-parse --quiet --verify "$commit^{commit}") \
  || fail "the version before this one is not known here; fetch it (git fetch --unshallow), or name a commit with PVELET_PREVIOUS=<commit>"
[ "${1:-}" != --known ] || exit 0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/versions
out=$cache/$commit
if [ ! -d "$out" ]; then
  mkdir -p "$cache" target
  work=$(mktemp -d "$cache/.new.XXXXXX")
  target=$(mktemp -d "$PWD/target/previous.XXXXXX")
  trap 'rm -rf "$work" "$target"' EXIT
  mkdir "$work/source" "$work/out"
  git archive "$commit" | tar -x -C "$work/source"
  echo "versions: building $(git log -1 --format='%h of %cs' "$commit") (once; a minute or two where this version is built already)" >&2
  # What both versions need of others is built already: it is taken over, and only what is ours is built.
  built=target/debug
  if [ -d "$built/deps" ]; then
    mkdir "$target/debug"
    cp -a "$built/.fingerprint" "$built/build" "$target/debug/"
    # The same files, as cargo puts new ones in their places. They may be on another file system.
    cp -al "$built/deps" "$target/debug/" 2>/dev/null || { rm -rf "$target/debug/deps" && cp -a "$built/deps" "$target/debug/"; }
    for crate in pvelet pve-sim pve_sim; do
      rm -rf "$target/debug/"{.fingerprint,build}/"$crate"[-_]* "$target/debug/deps/"{,lib}"$crate"[-_]*
    done
  fi
  # All of the workspace and its own features, though three programs of it: so that what it needs of others is needed in the same way.
  features=$(sed -n 's/^TEST_FEATURES := //p' "$work/source/Makefile")
  (cd "$work/source" && CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=$target nice "${CARGO:-cargo}" build --quiet --locked --workspace \
    --bin pvelet-agent --bin pvelet-controller --bin pveletctl --features "$features") >&2
  for name in pvelet-agent pvelet-controller pveletctl; do strip -o "$work/out/$name" "$target/debug/$name"; done
  # Whoever was first has the folder; both are the same.
  mv -T "$work/out" "$out" 2>/dev/null || [ -d "$out" ]
fi
echo "$out"
