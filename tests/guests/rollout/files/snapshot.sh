# What no install, upgrade or removal of the agent may change: VMs (configs, disks, processes), networks, other people's firewall rules.
name=$(hostname); root=/var/lib/pve-sim/$name
echo '[configs]'
(cd /etc/pve && find "nodes/$name/qemu-server" -type f -exec sha256sum {} + | sort -k 2)
echo '[disks]'
# A running VM may write to its disks: they are compared by name and size, templates byte by byte.
(cd "$root/var/lib/vz" && find images -type f -printf '%p %s\n' | sort && find images -name 'base-*' -exec sha256sum {} + | sort -k 2)
echo '[running]'
for pid in "$root"/run/qemu-server/*.pid; do [ -e "$pid" ] && echo "${pid##*/} $(cat "$pid")"; done || :
echo '[network]'
find /etc/network -type f -exec sha256sum {} + | sort -k 2
ip -br link | awk '{print $1, $2, $3}'
ip -br address | awk '$1 != "eth0"'
echo '[firewall]'
grep -v 'pvelet-agent' "/etc/pve/nodes/$name/host.fw"
