# SPDX-License-Identifier: Apache-2.0
"""What the role decides, as pure functions: from what was read to what is wrong, or to the text that is written."""

from __future__ import annotations

import ipaddress
import json
import re
import time
import tomllib

from ansible.errors import AnsibleFilterError

SUPPORTED = "13"
TOLERATED = "12"
NODE_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
RANGE = re.compile(r"\s*(\d+)\s*-\s*(\d+)\s*")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]*_[0-9][^_/]*_[a-z0-9-]+\.deb")
MIB = 1 << 20


def toml_value(value) -> str:
    """A value; JSON writes them as TOML does, as long as it leaves other scripts as they are."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, dict):
        raise AnsibleFilterError(f"no section is expected here: {value}")
    return json.dumps(str(value), ensure_ascii=False)


def toml_lines(table: dict) -> list[str]:
    """Keys and values of a table, without what is not set."""
    plain = {key: value for key, value in table.items() if value is not None}
    return [f"{key} = {toml_value(value)}" for key, value in plain.items()]


def agent_toml(config: dict) -> str:
    """The agent's configuration. What is null, and sections without anything, are left out: the agent has a default for them."""
    sections = {key: value for key, value in config.items() if isinstance(value, dict)}
    lists = {key: value for key, value in config.items() if isinstance(value, list) and all(isinstance(v, dict) for v in value)}
    plain = {key: value for key, value in config.items() if key not in sections and key not in lists}
    blocks = [toml_lines(plain)]
    blocks += [[f"[{name}]", *lines] for name, table in sections.items() if (lines := toml_lines(table))]
    blocks += [[f"[[{name}]]", *toml_lines(table)] for name, tables in lists.items() for table in tables]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def needs_restart(old: str | None, new: str) -> bool:
    """Whether a new configuration differs from the old one in more than what the agent takes over by a reload."""

    def lasting(text: str) -> dict:
        table = tomllib.loads(text)
        table.pop("mode", None)
        table.pop("identity", None)
        if isinstance(table.get("log"), dict):
            table["log"].pop("level", None)
        return {key: value for key, value in table.items() if value != {}}

    try:
        return lasting(old or "") != lasting(new)
    except tomllib.TOMLDecodeError:
        return True


def storages(text: str | None, node: str) -> set[str]:
    """The storages of storage.cfg that a node has."""
    found, name, usable = set(), None, True
    for line in [*(text or "").splitlines(), "end: end"]:
        head = re.fullmatch(r"([a-z]+):\s*(\S+)\s*", line)
        words = line.split()
        if head:
            if name and usable:
                found.add(name)
            name, usable = head.group(2), True
        elif words[:1] == ["disable"]:
            usable = False
        elif words[:1] == ["nodes"] and node not in "".join(words[1:]).split(","):
            usable = False
    return found


def texts(value) -> list[str]:
    """A list of texts. What is given by -e KEY=VALUE is one text, with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(part) for part in value or []]


def identity(settings: dict) -> str:
    """The SPIFFE id that a host's certificate must have."""
    return f"spiffe://{settings['trust_domain']}/cluster/{settings['cluster']}/host/{settings['node']}"


def certificate_problems(shown: list[dict], settings: dict) -> list[str]:
    """What is wrong with a certificate that `pveletctl pki show` has told of. Its time is not judged: one that has ended is due for a new one, and
    a new one is judged by the agent that takes it."""
    wanted = identity(settings)
    leaf = next((c for c in shown if c["usage"] != "CA"), None)
    if leaf is None:
        return [f"{settings['certificate_file']}: holds no certificate of a host; expected one of {wanted}"]
    problems = []
    if leaf["identity"] != wanted:
        problems.append(
            f"{settings['certificate_file']}: is the certificate of {leaf['identity']}, not of this host ({wanted}); "
            "take the right file, or set pvelet_agent_node, pvelet_agent_cluster and pvelet_agent_trust_domain as it says"
        )
    if leaf["usage"] != "server":
        problems.append(f"{settings['certificate_file']}: is made for usage '{leaf['usage']}'; an agent needs a server's")
    return problems


def certificate_names(given: list[list[str]], shown: list[dict]) -> list[str]:
    """The names of a new certificate as arguments: DNS names and addresses that are given, or those of the certificate in use."""
    dns, addresses = (texts(names) for names in given)
    if not dns and not addresses:
        for name in next((c.get("names", []) for c in shown if c["usage"] != "CA"), []):
            try:
                addresses = [*addresses, str(ipaddress.ip_address(name))]
            except ValueError:
                dns = [*dns, name]
    return [word for name in dns for word in ("--dns", name)] + [word for name in addresses for word in ("--ip", name)]


def issued_and_valid(shown: list[dict], issued: list[dict]) -> bool:
    """Whether a certificate is one that a CA has issued, and that is neither revoked nor at its end."""
    serials = {c["serial"] for c in issued if c["usage"] != "CA" and c["status"] == "valid"}
    return bool(shown) and shown[0]["serial"] in serials


def revoked(shown: list[dict], issued: list[dict]) -> bool:
    """Whether a certificate is one that a CA has revoked."""
    serials = {c["serial"] for c in issued if c["status"] == "revoked"}
    return any(c["serial"] in serials for c in shown if c["usage"] != "CA")


def ca_problems(shown: list[dict], trust_domain: str, where: str) -> list[str]:
    """What is wrong with a CA that `pveletctl pki show` has told of."""
    authorities = [c for c in shown if c["usage"] == "CA"]
    if not authorities:
        return [f"{where}: holds no certificate of a CA; make one with: pveletctl pki init --dir DIR --trust-domain {trust_domain}"]
    ended = [c for c in authorities if c["status"] in ("expired", "not yet valid")]
    if len(ended) == len(authorities):
        c = ended[0]
        remedy = "make a new CA and bring it to hosts and clients" if c["status"] == "expired" else "is the clock of this machine right?"
        return [f"{where}: the CA is {c['status']} (valid from {c['not_before']} to {c['not_after']}); {remedy}"]
    wrong = [c["identity"] for c in authorities if c["identity"].startswith("spiffe://") and c["identity"] != f"spiffe://{trust_domain}"]
    if len(wrong) == len(authorities):
        return [f"{where}: the CA is that of {wrong[0]}, but pvelet_agent_trust_domain is '{trust_domain}'; they must be the same"]
    return []


def vmid_overlaps(ranges: dict) -> list[str]:
    """Hosts whose ranges of VMIDs are none, or have VMIDs in common: two agents would take the same one."""
    problems, known = [], []
    for host, text in sorted(ranges.items()):
        if not text:
            continue
        match = RANGE.fullmatch(str(text))
        if not match or int(match.group(1)) > int(match.group(2)):
            problems.append(f"pvelet_agent_vmid_range of {host} is '{text}'; write first and last, like 100000-100999")
            continue
        first, last = int(match.group(1)), int(match.group(2))
        for other, start, end in known:
            if first <= end and start <= last:
                problems.append(f"pvelet_agent_vmid_range of {host} ({text}) and of {other} ({start}-{end}) overlap; give each host its own")
        known.append((host, first, last))
    return problems


def endpoint(host, port) -> str:
    """ADDRESS:PORT, IPv6 in brackets."""
    host = str(host)
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def package_problems(path: str) -> list[str]:
    """What is wrong with the name of a package's file. Its version is compared with what a host has before the file is brought there."""
    name = path.rsplit("/", 1)[-1]
    if PACKAGE.fullmatch(name):
        return []
    return [
        f"pvelet_agent_package is '{path}', but its version is known by the file's name; "
        "give it the one that it was built with: pvelet-agent_VERSION_amd64.deb"
    ]


def preflight_problems(host: dict, settings: dict) -> list[str]:
    """Why pvelet-agent cannot be installed on a host as it is. Each with what was seen, and what to do."""
    return [
        problem
        for look in (
            system_problems,
            program_problems,
            node_problems,
            place_problems,
            address_problems,
            port_problems,
            space_problems,
            clock_problems,
        )
        for problem in look(host, settings)
    ]


def system_problems(host: dict, settings: dict) -> list[str]:
    """The operating system."""
    name, version, shown = host["os"]["id"], host["os"]["version"].split(".")[0], host["os"]["name"] or host["os"]["id"]
    problems = []
    if name != "debian":
        problems.append(f"the operating system is '{shown}'; pvelet-agent is supported on PVE 9 (Debian {SUPPORTED})")
    elif version == TOLERATED and not settings["allow_debian_12"]:
        problems.append(
            f"this is {shown}; PVE 9 (Debian {SUPPORTED}) is what is supported. On PVE 8 (Debian {TOLERATED}) the agent only observes: "
            "to install it nevertheless set pvelet_agent_allow_debian_12: true"
        )
    elif version not in (SUPPORTED, TOLERATED):
        problems.append(f"this is {shown}; pvelet-agent is supported on PVE 9 (Debian {SUPPORTED})")
    if host["machine"] != "x86_64":
        problems.append(f"the processor is '{host['machine']}'; PVE and this package are for x86_64 (amd64)")
    return problems


def node_problems(host: dict, settings: dict) -> list[str]:
    """PVE's node."""
    node, pve = settings["node"], host["pve"]
    if not NODE_NAME.fullmatch(node):
        return [f"'{node}' is no name of a PVE node; set pvelet_agent_node to the host's name in PVE (on the host: hostname)"]
    if not pve["nodes"]:
        return ["/etc/pve/nodes is not there: is this a PVE host, and does pve-cluster run (systemctl status pve-cluster)?"]
    if node not in pve["nodes"]:
        return [
            f"PVE has no node '{node}' (/etc/pve/nodes holds {', '.join(pve['nodes'])}); "
            "name the host in the inventory as PVE does, or set pvelet_agent_node"
        ]
    if pve["local"] not in (None, node):
        return [f"this host is PVE's node '{pve['local']}', but the inventory says '{node}'; are two addresses (ansible_host) mixed up?"]
    if pve["cluster"] and settings["cluster"] != pve["cluster"]:
        return [f"the host belongs to PVE cluster '{pve['cluster']}', but pvelet_agent_cluster is '{settings['cluster']}'"]
    return []


def place_problems(host: dict, settings: dict) -> list[str]:
    """Storages and bridges that the host must have."""
    there = storages(host["pve"]["storage_cfg"], settings["node"])
    problems = []
    if host["pve"]["storage_cfg"] is not None:
        problems += [
            f"storage '{name}' (pvelet_agent_storages) is not there for this node; PVE has {', '.join(sorted(there)) or 'none'}"
            for name in texts(settings["storages"])
            if name not in there
        ]
    problems += [
        f"bridge '{name}' (pvelet_agent_bridges) is not there; the host has {', '.join(host['bridges']) or 'none'}"
        for name in texts(settings["bridges"])
        if name not in host["bridges"]
    ]
    return problems


def listens(config: dict) -> dict:
    """Where an agent with this configuration listens: its addresses by the variable that sets them."""
    metrics = config.get("metrics")
    wanted = {
        "pvelet_agent_listen": config.get("listen"),
        "pvelet_agent_metrics_listen": metrics.get("listen") if isinstance(metrics, dict) else None,
    }
    return {variable: str(address) for variable, address in wanted.items() if address}


def split_address(text: str) -> tuple[str, str]:
    """The host's part and the port of ADDRESS:PORT, without brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), port


def in_the_way(wanted: str, there: str) -> bool:
    """Whether a socket that listens on an address keeps another one, on the same port, from it. What is no address is taken for all of them."""
    try:
        first, second = ipaddress.ip_address(wanted), ipaddress.ip_address(there)
    except ValueError:
        return True
    if first.is_unspecified or second.is_unspecified:
        # `::` takes IPv4 as well, unless it was told not to, which cannot be seen.
        every = [a for a in (first, second) if a.is_unspecified]
        return first.version == second.version or any(a.version == 6 for a in every)
    return first == second


def port_problems(host: dict, settings: dict) -> list[str]:
    """The agent's ports. systemd keeps the first for an agent that is between two starts."""
    problems = []
    for variable, text in settings["listens"].items():
        address, port = split_address(text)
        main = variable == "pvelet_agent_listen"
        own = ["pvelet-agent"] + (["systemd"] if main and host["service"]["stored"] else [])
        others = [
            f"{who['name']} (pid {who['pid']})"
            for who in host["listeners"]
            if str(who["port"]) == port and who["name"] not in own and in_the_way(address, who["address"])
        ]
        if others:
            others = ", ".join(dict.fromkeys(others))
            problems.append(
                f"port {port} is in use by {others}; end that, or set {'pvelet_agent_port' if main else variable} to another one"
            )
    return problems


def address_problems(host: dict, settings: dict) -> list[str]:
    """Addresses that the host does not have."""
    problems = []
    for variable, text in settings["listens"].items():
        address, port = split_address(text)
        error = host["unbindable"].get(text)
        if error == "EAFNOSUPPORT":
            instead = "0.0.0.0" if variable == "pvelet_agent_listen" else f"0.0.0.0:{port}"
            problems.append(f"the host has no IPv6, but {variable} is '{text}'; set {variable}: {instead}")
        elif error == "EADDRNOTAVAIL":
            problems.append(f"no interface of the host has the address {address} ({variable}; on the host: ip address); set {variable} to one that it has")
        elif error:
            problems.append(f"{variable} is '{text}': the host refuses to listen there ({error})")
    return problems


def program_problems(host: dict, _settings: dict) -> list[str]:
    """What Ansible itself needs on the host."""
    if host["python_apt"]:
        return []
    return ["Python's module apt is not there, by which Ansible installs packages; on the host: apt install python3-apt"]


def space_problems(host: dict, settings: dict) -> list[str]:
    """Free space."""
    wanted = settings["min_free_mib"]
    return [
        f"{place} has {free // MIB} MiB free; at least {wanted} MiB are needed (pvelet_agent_min_free_mib)"
        for place, free in host["free"].items()
        if free is not None and free < wanted * MIB
    ]


def clock_problems(host: dict, settings: dict) -> list[str]:
    """The host's clock. It was read between `asked` and now, so only what lies outside is wrong for sure."""
    now, asked, limit = settings.get("now") or time.time(), float(host["asked"]), settings["max_clock_skew"]
    off = max(asked - host["time"], host["time"] - now, 0)
    if off <= limit:
        return []
    way = "behind" if host["time"] < asked else "ahead of"
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(host["time"]))
    here = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    return [
        f"the clock is {int(off)} s {way} the one of this machine (there {shown}, here {here}); certificates would not be valid. "
        "Set it right (on PVE: chronyc makestep), or the one here"
    ]


def answers(result: dict, node: str, mode: str) -> bool:
    """Whether `pveletctl get host` has reached the agent that is meant, in the mode that is meant ("any": whichever)."""
    return not answer_problems(result, node, mode)


def answer_problems(result: dict, node: str, mode: str) -> list[str]:
    """What is wrong with the answer to `pveletctl get host`."""
    try:
        hosts = json.loads(result.get("stdout") or "{}").get("hosts", [])
    except ValueError:
        hosts = []
    facts = hosts[0].get("facts") if hosts else None
    if not facts:
        error = (hosts[0].get("error") or {}).get("message") if hosts else None
        said = error or (result.get("stderr") or result.get("msg") or "").strip()
        return [f"the agent of {node} does not answer: {said} (on the host: systemctl status pvelet-agent, journalctl -u pvelet-agent)"]
    problems = []
    if facts["node"] != node:
        problems.append(f"the agent that answers is that of node '{facts['node']}', not '{node}'; is pvelet_agent_address right?")
    if mode not in ("any", facts["mode"]):
        problems.append(f"the agent is in mode '{facts['mode']}', not '{mode}' (on the host: journalctl -u pvelet-agent)")
    if not facts["quorate"]:
        problems.append("PVE's cluster has no quorum there (pvecm status)")
    if facts["network_latched"]:
        problems.append("a network change could not be undone: look at the host's network, then: pveletctl network clear")
    return problems


def doctor_of(result: dict) -> dict:
    """What `pveletctl doctor` has told; nothing where it could not be asked."""
    try:
        told = json.loads(result.get("stdout") or "{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def gate_problems(result: dict, allowed) -> list[str]:
    """What stops a rollout in the answer to `pveletctl doctor`: that there is none, and failed checks that are not allowed to fail."""
    doctor, free = doctor_of(result), texts(allowed)
    problems = [f"{error.get('host', '?')}: {error.get('message') or error}" for error in doctor.get("errors", [])]
    if not problems and not doctor.get("hosts"):
        said = (result.get("stderr") or result.get("msg") or result.get("stdout") or "").strip()
        return [f"pveletctl doctor does not tell how the host is: {said}"]
    for host in doctor.get("hosts", []):
        for check in host["checks"]:
            if check["state"] == "failed" and check["id"] not in free:
                remedy = f"; {check['remedy']}" if check.get("remedy") else ""
                problems.append(f"{check['id']}: {check['seen']}{remedy}")
    return problems


def unseen(result: dict) -> list[str]:
    """The checks of which the agent cannot tell anything (yet): they have not run since it was started, or were cut off."""
    hosts = doctor_of(result).get("hosts", [])
    return [
        f"{check['id']}: {check.get('seen') or 'has not run yet'}"
        for host in hosts
        for check in host["checks"]
        if not check.get("observe_time")
    ]


def all_seen(result: dict) -> bool:
    """Whether the agent has answered, and every check has run since it was started."""
    doctor = doctor_of(result)
    return bool(doctor.get("hosts")) and not doctor.get("errors") and (result.get("rc") == 0 or not unseen(result))


class FilterModule:
    """The filters."""

    def filters(self) -> dict:
        """By name."""
        return {
            "agent_toml": agent_toml,
            "needs_restart": needs_restart,
            "certificate_problems": certificate_problems,
            "certificate_names": certificate_names,
            "issued_and_valid": issued_and_valid,
            "revoked": revoked,
            "ca_problems": ca_problems,
            "endpoint": endpoint,
            "listens": listens,
            "package_problems": package_problems,
            "texts": texts,
            "vmid_overlaps": vmid_overlaps,
            "preflight_problems": preflight_problems,
            "answers": answers,
            "answer_problems": answer_problems,
            "gate_problems": gate_problems,
            "all_seen": all_seen,
            "unseen": unseen,
        }
