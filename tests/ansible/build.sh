#!/usr/bin/env bash
# Makes the environment of Python that holds ansible-core and ansible-lint, once, and prints the folder its programs are in.
#
# The folder's name is a hash of what it is made from and of the Python it is for. Packages come as this machine's pip reaches them.
set -euo pipefail
cd "$(dirname "$0")"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/pvelet/ansible
version=$(python3 -c 'import platform; print(platform.python_version())')
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  || { echo "ansible: Python 3.11 or newer is needed, here is $version" >&2; exit 1; }
out=$cache/$({ cat build.sh requirements.txt; command -v python3; echo "$version"; } | sha256sum | cut -c1-16)
if [ -x "$out/bin/ansible-lint" ]; then
  echo "$out/bin"
  exit 0
fi
mkdir -p "$cache"
# Whoever comes second waits here, and then finds it made.
exec 9>"$cache/lock"
flock 9
if [ -x "$out/bin/ansible-lint" ]; then
  echo "$out/bin"
  exit 0
fi
echo "ansible: installing ansible-core and ansible-lint (once; a minute)" >&2
rm -rf "$out"
# Programs in it name it by its full path, so it is made where it will stay, and counts from its last step on.
trap 'rm -rf "$out"' EXIT
python3 -m venv "$out"
"$out/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --requirement requirements.txt >&2
"$out/bin/pip" check --quiet --disable-pip-version-check >&2
trap - EXIT
echo "$out/bin"
