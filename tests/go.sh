# Sourced by what builds programs in Go for tests, after `what` (for messages), `cache` (the folder of all its builds) and `out` (the folder of this
# one, named by what it is made from). Ends the script with the folder's path where it is there already; else the programs are to be put into
# "$work/out", and `finish` is to be called.
umask 022

fail() {
  echo "$what: $*" >&2
  exit 1
}
found() {
  echo "$out"
  exit 0
}
finish() {
  mv -T "$work/out" "$out"
  echo "$what: built in $SECONDS s, $(du -sh "$out" | cut -f1)" >&2
  found
}

[ ! -d "$out" ] || found
mkdir -p "$cache"
# Whoever comes second waits here, and then finds the programs made.
exec 9>"$cache/lock"
flock 9
[ ! -d "$out" ] || found
rm -rf "$cache"/building.*
work=$(mktemp -d "$cache/building.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/out"

# Go: what is on the PATH, else where its own archive and Debian's versioned packages put it.
want=$(sed -n 's/^go //p' go.mod)
PATH=$PATH:/usr/local/go/bin
for dir in /usr/lib/go-*/bin; do PATH=$PATH:$dir; done
command -v go >/dev/null || fail "there is no go here; install Go $want or newer, then run again"
# An older go takes the version that go.mod asks for as a module, where it may. Here it says so when it may not.
if ! go list -m >"$work/log" 2>&1; then
  cat "$work/log" >&2
  fail "$(command -v go) is too old and cannot take a newer one by itself; install Go $want or newer, then run again"
fi
