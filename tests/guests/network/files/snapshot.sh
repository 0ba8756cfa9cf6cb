# The network of a host: files, and what the kernel has. Addresses first get the time to become more than tentative.
udevadm settle
for _ in 1 2 3 4 5 6 7 8 9 10; do
  [ -n "$(ip -6 -o address show tentative)" ] || break
  sleep 0.3
done
echo '[files]'
find /etc/network -type f -exec sha256sum {} +
find /etc/network -type l -printf '%l  %p\n'
echo '[link]'
ip -j -d link
echo '[address]'
ip -j address
echo '[route]'
ip -j route show table all
echo '[route6]'
ip -j -6 route show table all
echo '[vlan]'
bridge -j vlan
echo '[ipv6]'
grep -H . /proc/sys/net/ipv6/conf/*/disable_ipv6
