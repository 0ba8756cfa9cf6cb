#!/usr/bin/env bash
# Run inside the image while it is built: makes of plain Debian packages a guest that boots fast and lets the tests in.
set -euo pipefail

# Only the key made with this image logs in. `*`, not `!`: a locked account would be refused without PAM.
usermod -p '*' root
install -d -m 700 /root/.ssh
install -m 600 /root/authorized_keys /root/.ssh/authorized_keys
rm -f /etc/ssh/ssh_host_* /root/authorized_keys
install -m 600 /root/host_key /etc/ssh/ssh_host_ed25519_key
rm -f /root/host_key
cat >/etc/ssh/sshd_config.d/guest.conf <<'EOF'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
MaxSessions 100
MaxStartups 100
PermitUserEnvironment no
EOF

echo guest >/etc/hostname
printf '127.0.0.1 localhost\n10.0.2.15 guest\n' >/etc/hosts
echo '/dev/vda / ext4 defaults 0 1' >/etc/fstab
: >/etc/machine-id

# The tests' own way in is set up beside ifupdown2, so that a test may do what it likes with /etc/network/interfaces.
rm -rf /etc/network/interfaces.d
mkdir -p /etc/network/interfaces.d
printf 'auto lo\niface lo inet loopback\n\nsource /etc/network/interfaces.d/*\n' >/etc/network/interfaces
cat >/etc/systemd/system/guest-net.service <<'EOF'
[Unit]
Description=The address that the tests reach this guest at
DefaultDependencies=no
Wants=sys-subsystem-net-devices-eth0.device
After=sys-subsystem-net-devices-eth0.device
Before=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/ip link set eth0 up
ExecStart=/bin/ip address replace 10.0.2.15/24 dev eth0
[Install]
WantedBy=multi-user.target
EOF
# What the harness waits for on the serial console.
cat >/etc/systemd/system/guest-ready.service <<'EOF'
[Unit]
Description=Tell the harness that ssh answers
After=ssh.service guest-net.service
Requires=ssh.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'echo; echo pvelet-guest-ready >/dev/ttyS0'
[Install]
WantedBy=multi-user.target
EOF
systemctl --quiet enable guest-net.service guest-ready.service ssh.service

# Nothing that runs by the clock, waits for people, or is about hardware that is not there: each costs seconds without KVM.
mkdir -p /etc/systemd/journald.conf.d /etc/systemd/system.conf.d
printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/guest.conf
printf '[Manager]\nDefaultTimeoutStartSec=600\nDefaultDeviceTimeoutSec=600\n' >/etc/systemd/system.conf.d/guest.conf
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  systemd-timesyncd.service systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
  systemd-firstboot.service systemd-machine-id-commit.service systemd-update-utmp.service systemd-pstore.service \
  getty@tty1.service serial-getty@ttyS0.service systemd-logind.service systemd-binfmt.service modprobe@drm.service \
  dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount; do
  ln -sf /dev/null "/etc/systemd/system/$unit"
done
# ifupdown2 takes 20 s to find that there is nothing to do. A test of the network enables it for itself.
systemctl --quiet disable networking.service
# A test of health enables it for itself.
systemctl --quiet disable containerd.service
for module in kvm_amd kvm_intel ata_piix ahci pcspkr drm vmw_vsock_vmci_transport i2c_piix4 powernow_k8 acpi_cpufreq cryptd aesni_intel; do
  echo "blacklist $module"
done >/etc/modprobe.d/guest.conf

# The kernel is booted from outside; its parts are not needed in here.
mkdir -p /boot/out
cp "$(ls /boot/vmlinuz-* | tail -n1)" /boot/out/vmlinuz
cp "$(ls /boot/initrd.img-* | tail -n1)" /boot/out/initrd
rm -f /boot/vmlinuz-* /boot/initrd.img-* /etc/apt/apt.conf.d/99mmdebstrap /vmlinuz* /initrd*
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
touch /etc/.updated /var/.updated
rm -f /root/customize.sh
