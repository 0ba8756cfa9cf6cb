# A guest becomes a host such as PVE's: ifupdown2 at boot, a management interface with the default route, a bond for everything else.
name=$(hostname); n=${name#pve}

# What a host of this test has no use for costs seconds at each boot.
for unit in lvm2-monitor.service blk-availability.service lvm2-lvmpolld.socket systemd-udev-load-credentials.service tmp.mount \
  sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@configfs.service modprobe@fuse.service modprobe@efi_pstore.service \
  modprobe@loop.service modprobe@dm_mod.service systemd-ask-password-console.path systemd-ask-password-wall.path \
  systemd-user-sessions.service systemd-hwdb-update.service systemd-boot-random-seed.service getty.target \
  systemd-network-generator.service; do
  ln -sf /dev/null "/etc/systemd/system/$unit"
done
# Bonds and bridges have the addresses of their ports. Else udev gives them others, sooner or later than the ports come.
mkdir -p /etc/systemd/network
sed 's/^MACAddressPolicy=.*/MACAddressPolicy=none/' /usr/lib/systemd/network/99-default.link >/etc/systemd/network/99-default.link
udevadm control --reload
echo 'options bonding max_bonds=0' >/etc/modprobe.d/bonding.conf
printf '%s\n' virtio_net bonding 8021q bridge tun fuse >/etc/modules-load.d/network.conf

# The order that PVE's own package of ifupdown2 has: after the devices, and after whoever prepares the network.
nics='sys-subsystem-net-devices-eth1.device sys-subsystem-net-devices-eth2.device sys-subsystem-net-devices-eth3.device'
mkdir -p /etc/systemd/system/networking.service.d
cat >/etc/systemd/system/networking.service.d/order.conf <<UNIT
[Unit]
Wants=network-pre.target $nics
After=local-fs.target network-pre.target systemd-modules-load.service systemd-sysctl.service $nics
Before=network.target network-online.target
UNIT
# Else a test that fills the disk writes for long.
tune2fs -m 0 /dev/vda >/dev/null

{
  printf 'auto lo\niface lo inet loopback\n\n'
  printf 'auto eth1\niface eth1 inet static\n    address 192.0.2.%s/24\n' "$n"
  # pve3 is the others' gateway, with an address for each.
  [ "$n" = 3 ] || printf '    gateway 192.0.2.10%s\n' "$n"
  [ "$n" != 3 ] || printf '    address 192.0.2.101/24\n    address 192.0.2.102/24\n'
  printf '\niface eth2 inet manual\n    mtu 9000\n\niface eth3 inet manual\n    mtu 9000\n\n'
  printf 'auto bond0\niface bond0 inet manual\n    bond-slaves eth2 eth3\n    bond-miimon 100\n    bond-mode active-backup\n    mtu 9000\n\n'
  printf 'source /etc/network/interfaces.d/*\n'
} >/etc/network/interfaces
# PVE's API has made it with its first edit.
: >/etc/network/.pve-interfaces.lock
systemctl --quiet enable networking.service
systemctl start networking.service

if [ "$n" = 3 ]; then
  # The tests reach the other hosts' agents through this one, over the management interfaces.
  for i in 1 2 3; do
    cat >"/etc/systemd/system/to-pve$i.socket" <<UNIT
[Socket]
ListenStream=700$i
TriggerLimitIntervalSec=0
[Install]
WantedBy=sockets.target
UNIT
    cat >"/etc/systemd/system/to-pve$i.service" <<UNIT
[Unit]
StartLimitIntervalSec=0
[Service]
LimitNOFILE=65536
# Connections to a host whose power was cut stay open here.
ExecStart=/lib/systemd/systemd-socket-proxyd --connections-max=16384 192.0.2.$i:7443
UNIT
  done
  systemctl daemon-reload
  systemctl --quiet enable --now to-pve1.socket to-pve2.socket to-pve3.socket
fi
