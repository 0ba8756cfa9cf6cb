#!/usr/bin/env bash
# Runs a command with Rust on the PATH, wherever `make setup` put it.
set -euo pipefail
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
exec "$@"
