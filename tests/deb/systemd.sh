#!/bin/sh
# Run inside of tests/bench/network.sh, where systemd runs: installs the agent's package, lets it serve, and restarts it in every way under new
# connections. Prints a line for each way: how it ended, how the connections ended, and what systemd keeps for the agent afterwards.
#
# Usage: systemd.sh PACKAGE FOLDER CONNECT, the folder with agent.crt, agent.key, ca.crt and ca.crl of pve1, and a Python program.
set -eu
unit=pvelet-agent.service
dpkg --force-unsafe-io --install "$1" >&2
cp "$2"/* /etc/pvelet/tls
chmod 600 /etc/pvelet/tls/agent.key
mkdir -p /etc/pve/nodes/pve1 /var/log/pve/tasks
sed -i -e 's/^#crl/crl/' -e 's/pvelet\.example/pvelet.test/' /etc/pvelet/agent.toml
# What hangs is ended after this time; the unit's own is longer than a test should take.
mkdir -p /run/systemd/system/$unit.d
printf '[Service]\nWatchdogSec=3\n' >/run/systemd/system/$unit.d/test.conf
systemctl daemon-reload
pvelet-agent check-config >&2
systemctl start $unit
kept() { systemctl show --value --property=NFileDescriptorStore $unit; }
echo "start: $(kept) kept"
for way in \
  "systemctl --no-block restart $unit" \
  "systemctl kill --kill-who=main --signal=KILL $unit" \
  "systemctl kill --kill-who=main --signal=STOP $unit"; do
  before=$(systemctl show --value --property=MainPID $unit)
  ended=$(python3 "$3" 7443 "$before" $way)
  echo "$way: $ended, $(kept) kept"
done
