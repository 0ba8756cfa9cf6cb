# The agent as a service, as the package puts it, and a simulated PVE beside it.
name=$(hostname)
systemctl stop pvelet-agent.service pve-sim.service 2>/dev/null || :
rm -rf /var/lib/pvelet
mkdir -p /etc/pvelet /etc/pvelet-fault /var/lib/pvelet /var/lib/pve-sim

# In front of the agent: what a test wants to happen at its next start, once.
cat >/usr/bin/pvelet-agent <<'SH'
#!/bin/sh
case "$*" in
  *--deadline*) fault=/etc/pvelet-fault/deadline ;;
  *--boot*) fault=/etc/pvelet-fault/boot ;;
  run*) fault=/etc/pvelet-fault/run ;;
esac
if [ -n "$fault" ] && [ -e "$fault" ]; then
  . "$fault"
  if [ "${fault##*/}" = deadline ]; then
    # Called every few seconds: it is this call's turn only where it comes so far.
    /usr/lib/pvelet/pvelet-agent "$@"
    status=$?
    [ "$status" -lt 128 ] || rm "$fault"
    exit "$status"
  fi
  rm "$fault"
  sync -f /etc
fi
exec /usr/lib/pvelet/pvelet-agent "$@"
SH
chmod 755 /usr/bin/pvelet-agent

cat >/etc/systemd/system/pve-sim.service <<UNIT
[Service]
ExecStartPre=/bin/rm -f /var/lib/pve-sim/$name/api.addr
ExecStart=/usr/lib/pvelet/pve-sim run --dir /var/lib/pve-sim --nodes $name
ExecStartPost=/usr/lib/pvelet/wait-for-pve
[Install]
WantedBy=multi-user.target
UNIT
cat >/usr/lib/pvelet/wait-for-pve <<SH
#!/bin/sh
until [ -s /var/lib/pve-sim/$name/api.addr ]; do sleep 0.1; done
SH
# The simulated daemon's port is a new one at each start.
cat >/usr/lib/pvelet/configure <<SH
#!/bin/sh
api=\$(cat /var/lib/pve-sim/$name/api.addr 2>/dev/null || echo 127.0.0.1:85)
sed "s/@API@/\$api/" /etc/pvelet/agent.toml.in >/etc/pvelet/agent.toml
SH
chmod 755 /usr/lib/pvelet/wait-for-pve /usr/lib/pvelet/configure
mkdir -p /etc/systemd/system/pvelet-agent.service.d
cat >/etc/systemd/system/pvelet-agent.service.d/test.conf <<'UNIT'
[Unit]
After=pve-sim.service
[Service]
ExecStartPre=
ExecStartPre=/usr/lib/pvelet/configure
TimeoutStartSec=300
WatchdogSec=0
UNIT
/usr/lib/pvelet/configure
systemctl daemon-reload
systemctl --quiet enable pve-sim.service pvelet-agent.service pvelet-network-boot.service
systemctl start pve-sim.service
systemctl start pvelet-agent.service
sync
