# A guest becomes a Kubernetes worker on a PVE host: containerd 1.7 under systemd, a simulated PVE, and the agent as a service.
name=$(hostname)
mkdir -p /etc/pvelet /var/lib/pve-sim /etc/containerd /etc/pvelet-fault /etc/systemd/system/containerd.service.d
modprobe -a overlay fuse

# Once, at the agent's next start: what a test wants to happen there.
cat >/usr/bin/pvelet-agent <<'SH'
#!/bin/sh
if [ -e /etc/pvelet-fault/run ]; then
  . /etc/pvelet-fault/run
  rm /etc/pvelet-fault/run
fi
exec /usr/lib/pvelet/pvelet-agent "$@"
SH
chmod 755 /usr/bin/pvelet-agent
cat >/etc/systemd/system/pve-sim.service <<UNIT
[Service]
ExecStart=/usr/lib/pvelet/pve-sim run --dir /var/lib/pve-sim --nodes $name
ExecStartPost=/bin/sh -c 'until [ -s /var/lib/pve-sim/$name/api.addr ]; do sleep 0.1; done'
UNIT
mkdir -p /etc/systemd/system/pvelet-agent.service.d
printf '[Unit]\nAfter=\nAfter=pve-sim.service\nWants=\n[Service]\nTimeoutStartSec=300\nWatchdogSec=0\n' \
  >/etc/systemd/system/pvelet-agent.service.d/test.conf
# Debian's unit starts containerd again by itself; here a dead one stays dead until somebody comes.
printf '[Service]\nRestart=no\n' >/etc/systemd/system/containerd.service.d/test.conf
systemctl daemon-reload
systemctl start pve-sim.service
sed -i "s/@API@/$(cat /var/lib/pve-sim/$name/api.addr)/" /etc/pvelet/agent.toml
systemctl --quiet enable containerd.service
systemctl restart containerd.service
ctr --namespace k8s.io images import /root/pause.tar >/dev/null
systemctl start pvelet-agent.service
