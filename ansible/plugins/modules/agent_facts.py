#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""What a host is, as far as the role asks: read in one go, since each module that is run costs a connection and a start of Python."""

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_facts
short_description: Tell what a host is before pvelet-agent is installed or changed on it
description:
  - Reads the operating system, PVE's cluster file system, bridges, free space, the owners of the agent's ports, the clock, and what there is of pvelet.
  - It changes nothing, and does so in check mode too.
options:
  listen:
    description: The addresses on which the agent is to listen, C(ADDRESS:PORT), IPv6 in brackets. Who has such a port, and whether the host has the address.
    type: list
    elements: str
    default: []
  asked:
    description: When the module was called, by the clock of the machine that the play runs on, in seconds since 1970. It is only handed back.
    type: int
    default: 0
  root:
    description: Put before all paths. For tests.
    type: path
    default: /
author:
  - pvelet authors
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Look at the host
  pvelet.pvelet.agent_facts:
    listen: ["[::]:7443"]
  register: host
"""

RETURN = r"""
host:
  description: What was found. A value that cannot be told is null.
  type: dict
  returned: always
"""

import errno
import hashlib
import importlib.util
import ipaddress
import os
import socket
import subprocess
import time

from ansible.module_utils.basic import AnsibleModule

# More than any of these files has on a real host.
LIMIT = 1 << 20
# The agent takes no more for a revocation list.
LARGEST_LIST = 4 << 20


class Host:
    """A host's files below a root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, absolute: str) -> str:
        """Where an absolute path of the host lies."""
        return os.path.join(self.root, absolute.lstrip("/"))

    def text(self, absolute: str) -> str | None:
        """The text of a file, None where there is none."""
        try:
            with open(self.path(absolute), encoding="utf-8", errors="replace") as file:
                return file.read(LIMIT)
        except OSError:
            return None

    def mode(self, absolute: str) -> str | None:
        """The permissions of a file, as the module template takes them; None where there is none."""
        try:
            return f"{os.stat(self.path(absolute)).st_mode & 0o7777:04o}"
        except OSError:
            return None

    def digest(self, absolute: str) -> str | None:
        """SHA-256 of a file's bytes, hexadecimal; None where there is none, or none that can be one of ours."""
        try:
            with open(self.path(absolute), "rb") as file:
                content = file.read(LARGEST_LIST + 1)
        except OSError:
            return None
        return hashlib.sha256(content).hexdigest() if len(content) <= LARGEST_LIST else None

    def names(self, absolute: str) -> list[str]:
        """What a folder holds, sorted."""
        try:
            return sorted(os.listdir(self.path(absolute)))
        except OSError:
            return []

    def os_release(self) -> dict:
        """`ID` and `VERSION_ID` of os-release."""
        pairs = (line.split("=", 1) for line in (self.text("/etc/os-release") or "").splitlines() if "=" in line)
        values = {key.strip(): value.strip().strip("\"'") for key, value in pairs}
        return {"id": values.get("ID", ""), "version": values.get("VERSION_ID", ""), "name": values.get("PRETTY_NAME", "")}

    def cluster(self) -> str | None:
        """The cluster's name in corosync.conf; None for a node that stands alone."""
        for line in (self.text("/etc/pve/corosync.conf") or "").splitlines():
            key, separator, value = line.strip().partition(":")
            if separator and key.strip() == "cluster_name":
                return value.strip()
        return None

    def local_node(self) -> str | None:
        """The node that the cluster file system takes this host for."""
        try:
            return os.path.basename(os.readlink(self.path("/etc/pve/local")))
        except OSError:
            return None

    def bridges(self) -> list[str]:
        """Bridges of the kernel, and those of Open vSwitch that ifupdown2 declares."""
        kernel = {name for name in self.names("/sys/class/net") if os.path.isdir(self.path(f"/sys/class/net/{name}/bridge"))}
        virtual, current = set(), None
        for line in (self.text("/etc/network/interfaces") or "").splitlines():
            words = line.split()
            if words[:1] == ["iface"] and len(words) > 1:
                current = words[1]
            elif words[:2] == ["ovs_type", "OVSBridge"] and current:
                virtual.add(current)
        return sorted(kernel | virtual)

    def free_bytes(self, absolute: str) -> int | None:
        """Free space for root on the file system of a folder."""
        try:
            at = os.statvfs(self.path(absolute))
        except OSError:
            return None
        return at.f_bavail * at.f_frsize

    def listeners(self, ports: set[int]) -> list[dict]:
        """Who listens on TCP ports: address, port, and pid and name of the process."""
        found = []
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in (self.text(table) or "").splitlines()[1:]:
                fields = line.split()
                # Local address, state (0A: listening), inode.
                if len(fields) < 10 or fields[3] != "0A":
                    continue
                address, port = fields[1].rsplit(":", 1)
                if int(port, 16) in ports:
                    holders = self.holders({f"socket:[{fields[9]}]"}) or ["0"]
                    place = {"address": kernel_address(address), "port": int(port, 16)}
                    found += [{**place, "pid": int(pid), "name": (self.text(f"/proc/{pid}/comm") or "?").strip()} for pid in holders]
        return found

    def holders(self, targets: set[str]) -> list[str]:
        """The processes that have one of these open."""
        return [pid for pid in self.names("/proc") if pid.isdigit() and targets & self.open_files(pid)]

    def open_files(self, pid: str) -> set[str]:
        """What a process has open."""
        links = set()
        for name in self.names(f"/proc/{pid}/fd"):
            try:
                links.add(os.readlink(self.path(f"/proc/{pid}/fd/{name}")))
            except OSError:
                pass
        return links

    def modified(self, absolute: str) -> float:
        """When a file was written, in seconds since 1970."""
        try:
            return os.stat(self.path(absolute)).st_mtime
        except OSError:
            return 0

    def stale(self, pid: int) -> bool:
        """Whether a process runs a program that has been replaced since."""
        try:
            return os.readlink(self.path(f"/proc/{pid}/exe")).endswith(" (deleted)")
        except OSError:
            return False


def kernel_address(text: str) -> str:
    """An address as the kernel's tables have it: words of four bytes in hexadecimal digits, each in the processor's order."""
    words = bytes.fromhex(text)
    address = ipaddress.ip_address(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4)))
    return str(getattr(address, "ipv4_mapped", None) or address)


def unbindable(listen: str) -> str | None:
    """Why the host cannot listen on the address of ADDRESS:PORT, as errno's name; None where it can. It is tried on a port that is free."""
    host = listen.rpartition(":")[0].strip("[]")
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
    except ValueError:
        # No address: what the agent itself says about its configuration is better.
        return None
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return None


def port_of(listen: str) -> int:
    """The port of ADDRESS:PORT, 0 where there is none."""
    port = listen.rpartition(":")[2]
    return int(port) if port.isdigit() else 0


def output(arguments: list[str]) -> str:
    """What a program prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, check=False, env={**os.environ, "LC_ALL": "C"})
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def package(name: str) -> dict | None:
    """Version and state of a Debian package; None where dpkg does not know it or has removed it."""
    words = output(["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", name]).split()
    return {"status": words[0], "version": words[1]} if len(words) == 2 and words[0] != "not-installed" else None


def unit(name: str) -> dict:
    """A unit of systemd."""
    wanted = ["ActiveState", "SubState", "NRestarts", "UnitFileState", "MainPID", "NFileDescriptorStore", "StateChangeTimestamp"]
    lines = output(["systemctl", "show", "--timestamp=unix", f"--property={','.join(wanted)}", name]).splitlines()
    return standing(dict(line.split("=", 1) for line in lines if "=" in line))


def standing(found: dict) -> dict:
    """What systemd's words about a unit mean."""
    state, since = found.get("ActiveState", ""), found.get("StateChangeTimestamp", "@")
    # One that ends again and again is activating too: it waits for its next start, or is in one.
    failing = state == "activating" and (found.get("SubState") == "auto-restart" or int(found.get("NRestarts") or 0) > 0)
    return {
        "active": state in ("active", "reloading", "activating") and not failing,
        "failing": failing,
        "enabled": found.get("UnitFileState", "") == "enabled",
        "pid": int(found.get("MainPID") or 0),
        "stored": int(found.get("NFileDescriptorStore") or 0),
        # The last start or reload, in seconds since 1970.
        "since": int(since.lstrip("@") or 0) if since.startswith("@") else 0,
    }


def python_apt(host: Host) -> bool:
    """Whether Ansible's module apt finds what it needs: in this Python, or in the one of the system."""
    return importlib.util.find_spec("apt_pkg") is not None or output([host.path("/usr/bin/python3"), "-c", "import apt_pkg; print(1)"]) != ""


def look(root: str, listen: list[str]) -> dict:
    """All of it."""
    host = Host(root)
    service = unit("pvelet-agent.service")
    service["stale"] = bool(service["pid"]) and host.stale(service["pid"])
    service["outdated"] = service["active"] and bool(service["since"]) and host.modified("/etc/pvelet/agent.toml") > service["since"] + 1
    tls = "/etc/pvelet/tls"
    return {
        "time": time.time(),
        "os": host.os_release(),
        "hostname": socket.gethostname().split(".")[0],
        "machine": os.uname().machine,
        "pve": {
            "nodes": host.names("/etc/pve/nodes"),
            "local": host.local_node(),
            "cluster": host.cluster(),
            "storage_cfg": host.text("/etc/pve/storage.cfg"),
        },
        "bridges": host.bridges(),
        "free": {"/var": host.free_bytes("/var")},
        "listeners": host.listeners({port_of(text) for text in listen} - {0}),
        "unbindable": {text: error for text in listen if (error := unbindable(text))},
        "python_apt": python_apt(host),
        "package": package("pvelet-agent"),
        "service": service,
        "config": host.text("/etc/pvelet/agent.toml"),
        "config_mode": host.mode("/etc/pvelet/agent.toml"),
        "certificate": host.text(f"{tls}/agent.crt"),
        "key": os.path.exists(host.path(f"{tls}/agent.key")),
        "ca": os.path.exists(host.path(f"{tls}/ca.crt")),
        "crl": os.path.exists(host.path(f"{tls}/ca.crl")),
        "digests": {"ca": host.digest(f"{tls}/ca.crt"), "crl": host.digest(f"{tls}/ca.crl")},
    }


def main() -> None:
    """The module."""
    options = {
        "listen": {"type": "list", "elements": "str", "default": []},
        "asked": {"type": "int", "default": 0},
        "root": {"type": "path", "default": "/"},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    host = look(module.params["root"], module.params["listen"])
    module.exit_json(changed=False, host={**host, "asked": module.params["asked"]})


if __name__ == "__main__":
    main()
