# A guest becomes a PVE host: the simulated PVE's programs play PVE's, under the names that the agent's unit and the role know.
name=$(hostname)
mkdir -p /var/lib/pve-sim /usr/lib/pve-sim
printf '127.0.0.1 localhost\n10.0.2.15 %s\n' "$name" >/etc/hosts

cat >/etc/systemd/system/pve-cluster.service <<UNIT
[Unit]
Description=Simulated PVE
[Service]
ExecStartPre=/bin/rm -f /var/lib/pve-sim/$name/api.addr
ExecStart=/usr/lib/pve-sim/pve-sim run --dir /var/lib/pve-sim --nodes $name
ExecStartPost=/bin/sh -c 'until [ -s /var/lib/pve-sim/$name/api.addr ]; do sleep 0.1; done'
TimeoutStartSec=300
[Install]
WantedBy=multi-user.target
UNIT
# PVE's daemon has its fixed port; the simulated one has another at each start.
cat >/etc/systemd/system/pvedaemon.socket <<UNIT
[Socket]
ListenStream=127.0.0.1:85
TriggerLimitIntervalSec=0
[Install]
WantedBy=sockets.target
UNIT
cat >/etc/systemd/system/pvedaemon.service <<UNIT
[Unit]
Requires=pve-cluster.service
After=pve-cluster.service
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/sh -c 'exec /lib/systemd/systemd-socket-proxyd \$(cat /var/lib/pve-sim/$name/api.addr)'
UNIT
ln -sfn "/var/lib/pve-sim/$name/etc/pve" /etc/pve

# For an emulated machine on a busy one.
mkdir -p /etc/systemd/system/pvelet-agent.service.d
printf '[Service]\nTimeoutStartSec=300\nWatchdogSec=0\n' >/etc/systemd/system/pvelet-agent.service.d/test.conf

# The part of PVE's command line that the role uses: rules of a node's firewall, in PVE's format.
cat >/usr/bin/pvesh <<'PY'
#!/usr/bin/python3 -IS
import hashlib, json, re, sys
verb, path, *flags = sys.argv[1:]
node, pos = re.fullmatch(r"/nodes/([^/]+)/firewall/rules(?:/(\d+))?", path).groups()
file = f"/etc/pve/nodes/{node}/host.fw"
try:
    text = open(file).read()
except FileNotFoundError:
    text = ""
digest = hashlib.sha1(text.encode()).hexdigest()
keys = {"-source": "source", "-p": "proto", "-dport": "dport"}
def parse(line):
    line, _, comment = line.partition("#")
    words = line.split()
    rule = {"enable": 0 if words[0].startswith("|") else 1, "type": words[0].strip("|").lower(), "action": words[1], "comment": comment.strip()}
    rule.update({keys[k]: v for k, v in zip(words[2::2], words[3::2])})
    return rule
def form(rule):
    flags = "".join(f" {flag} {rule[key]}" for flag, key in keys.items() if key in rule)
    return f"{'' if int(rule['enable']) else '|'}{rule['type'].upper()} {rule['action']}{flags} # {rule['comment']}".rstrip(" #")
head, _, body = text.partition("[RULES]\n")
rules = [parse(line) for line in body.splitlines() if line.strip()]
options = dict(f.lstrip("-").split("=", 1) for f in flags if "=" in f)
if verb == "get":
    print(json.dumps([{**rule, "pos": i, "digest": digest} for i, rule in enumerate(rules)]))
    sys.exit()
if options.pop("digest", digest) != digest:
    sys.exit("detected modified configuration - file changed by other user? Try again.")
if verb == "create":
    rules.insert(0, options)
elif verb == "delete":
    del rules[int(pos)]
open(file, "w").write(f"{head}[RULES]\n\n" + "".join(form(rule) + "\n" for rule in rules))
PY
chmod 755 /usr/bin/pvesh

# Ansible sends each module with all that it imports, as sources in an archive, and Python compiles them anew each time; emulated that is a third of
# what a module costs. Here what has been compiled is kept, by the digest of the source.
packages=$(echo /usr/local/lib/python3.*/dist-packages)
mkdir -p /var/cache/compiled
cat >"$packages/keep_compiled.py" <<'PY'
import _imp, marshal, os, sys, zipimport
compile_source = zipimport._compile_source
def kept(path, source):
    file = f"/var/cache/compiled/{_imp.source_hash(0, source).hex()}-{len(source)}-{os.path.basename(path)}"
    try:
        with open(file, "rb") as stored:
            return marshal.load(stored)
    except OSError:
        code = compile_source(path, source)
    with open(f"{file}.{os.getpid()}", "wb") as out:
        marshal.dump(code, out)
    os.rename(out.name, file)
    return code
if os.geteuid() == 0:
    zipimport._compile_source = kept
PY
echo 'import keep_compiled' >"$packages/keep_compiled.pth"

# A bridge, declared as PVE declares one. Whoever removes the agent must leave it.
printf '\nauto vmbr0\niface vmbr0 inet static\n    address 10.77.0.1/24\n    bridge-ports none\n    bridge-stp off\n    bridge-fd 0\n' >>/etc/network/interfaces
modprobe bridge
systemctl daemon-reload
systemctl --quiet enable pve-cluster.service pvedaemon.socket networking.service
systemctl start pve-cluster.service pvedaemon.socket
# networking.service makes it at boot; without it ifup takes itself for a second one.
mkdir -p /run/network
ifup vmbr0
/usr/lib/pve-sim/pve-sim ctl --dir /var/lib/pve-sim seed-template "node=$name" vmid=9001 name=debian-13 size_mib=64 fill_mib=8
printf '[OPTIONS]\n\nenable: 1\n\n[RULES]\n\nIN ACCEPT -source 10.1.0.0/16 -p tcp -dport 22 # somebody else'"'"'s\n' >"/etc/pve/nodes/$name/host.fw"
