"""The collection's plugins: what is decided, by table; what is read, from files that look like a host's."""

import hashlib
import importlib.util
import json
import os
import pathlib
import socket
import tempfile
import tomllib
import unittest

PLUGINS = pathlib.Path(__file__).parents[2] / "ansible" / "plugins"


def load(kind: str, name: str):
    """A plugin as a module."""
    spec = importlib.util.spec_from_file_location(name, PLUGINS / kind / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


agent = load("filter", "agent")
facts = load("modules", "agent_facts")
firewall = load("modules", "pve_firewall")

NOW = 1_800_000_000.0
HOST = {
    "time": NOW,
    "asked": NOW - 2,
    "os": {"id": "debian", "version": "13", "name": "Debian GNU/Linux 13 (trixie)"},
    "hostname": "pve1",
    "machine": "x86_64",
    "pve": {"nodes": ["pve1", "pve2"], "local": "pve1", "cluster": "lab", "storage_cfg": "dir: local\n\tpath /var/lib/vz\n"},
    "bridges": ["vmbr0"],
    "free": {"/var": 4 << 30},
    "listeners": [],
    "unbindable": {},
    "python_apt": True,
    "service": {"stored": 0},
}
SETTINGS = {
    "node": "pve1",
    "cluster": "lab",
    "trust_domain": "t.example",
    "listens": {"pvelet_agent_listen": "[::]:7443", "pvelet_agent_metrics_listen": "127.0.0.1:9100"},
    "storages": ["local"],
    "bridges": ["vmbr0"],
    "allow_debian_12": False,
    "min_free_mib": 512,
    "max_clock_skew": 300,
    "certificate_file": "agent.crt",
    "now": NOW + 2,
}


def changed(path: str, value) -> dict:
    """HOST with one value changed."""
    host = json.loads(json.dumps(HOST))
    at = host
    *way, last = path.split(".")
    for key in way:
        at = at[key]
    at[last] = value
    return host


def listener(name: str, port: int, address: str = "::") -> dict:
    """Who listens somewhere."""
    return {"pid": 7, "name": name, "port": port, "address": address}


class Preflight(unittest.TestCase):
    def test_a_good_host_has_no_problem(self):
        self.assertEqual(agent.preflight_problems(HOST, SETTINGS), [])

    def test_each_fault_is_told_once_and_names_what_was_seen(self):
        table = [
            (changed("os", {"id": "ubuntu", "version": "24.04", "name": "Ubuntu 24.04"}), "Ubuntu 24.04"),
            (changed("os", {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12"}), "pvelet_agent_allow_debian_12"),
            (changed("os", {"id": "debian", "version": "14", "name": "Debian GNU/Linux 14"}), "Debian GNU/Linux 14"),
            (changed("machine", "aarch64"), "aarch64"),
            (changed("pve.nodes", []), "pve-cluster"),
            (changed("pve.nodes", ["a", "b"]), "a, b"),
            (changed("pve.local", "pve2"), "pve2"),
            (changed("pve.cluster", "other"), "other"),
            (changed("pve.storage_cfg", "dir: local\n\tdisable\n"), "pvelet_agent_storages"),
            (changed("pve.storage_cfg", "dir: local\n\tnodes pve2,pve3\n\ndir: fast\n\tpath /f\n"), "fast"),
            (changed("bridges", ["vmbr1"]), "vmbr1"),
            (changed("python_apt", False), "apt install python3-apt"),
            (changed("listeners", [listener("nginx", 7443)]), "port 7443 is in use by nginx (pid 7); end that, or set pvelet_agent_port"),
            (changed("listeners", [listener("systemd", 7443)]), "systemd"),
            (changed("listeners", [listener("node_exporter", 9100)]), "port 9100 is in use by node_exporter (pid 7)"),
            (changed("listeners", [listener("node_exporter", 9100, "127.0.0.1")]), "pvelet_agent_metrics_listen"),
            (changed("listeners", [listener("systemd", 9100)]) | {"service": {"stored": 1}}, "systemd"),
            (changed("unbindable", {"[::]:7443": "EAFNOSUPPORT"}), "set pvelet_agent_listen: 0.0.0.0"),
            (changed("unbindable", {"127.0.0.1:9100": "EADDRNOTAVAIL"}), "no interface of the host has the address 127.0.0.1"),
            (changed("unbindable", {"127.0.0.1:9100": "EACCES"}), "EACCES"),
            (changed("free", {"/var": 100 << 20}), "100 MiB"),
            (changed("time", NOW - 86_400), "behind"),
            (changed("time", NOW + 86_400), "ahead of"),
        ]
        for host, text in table:
            with self.subTest(text):
                problems = agent.preflight_problems(host, SETTINGS)
                self.assertEqual(len(problems), 1, problems)
                self.assertIn(text, problems[0])

    def test_faults_are_told_all_at_once(self):
        host = changed("bridges", []) | {"free": {"/var": 0}, "machine": "arm"}
        self.assertEqual(len(agent.preflight_problems(host, SETTINGS)), 3)

    def test_what_is_unusual_but_well_is_no_problem(self):
        twelve = changed("os", {"id": "debian", "version": "12", "name": "Debian GNU/Linux 12"})
        self.assertEqual(agent.preflight_problems(twelve, SETTINGS | {"allow_debian_12": True}), [])
        own = changed("listeners", [listener("pvelet-agent", 7443), listener("pvelet-agent", 9100, "127.0.0.1")])
        self.assertEqual(agent.preflight_problems(own, SETTINGS), [])
        kept = changed("listeners", [listener("systemd", 7443)]) | {"service": {"stored": 1}}
        self.assertEqual(agent.preflight_problems(kept, SETTINGS), [])
        elsewhere = changed("listeners", [listener("node_exporter", 9100, "192.0.2.1"), listener("nginx", 80)])
        self.assertEqual(agent.preflight_problems(elsewhere, SETTINGS), [])
        alone = changed("pve.cluster", None)
        self.assertEqual(agent.preflight_problems(alone, SETTINGS | {"cluster": "pve1"}), [])
        slow = SETTINGS | {"now": NOW + 3_000}
        self.assertEqual(agent.preflight_problems(HOST, slow), [])
        self.assertEqual(agent.preflight_problems(changed("free", {"/var": None}), SETTINGS), [])

    def test_a_listener_is_in_the_way_where_both_would_get_the_same_connections(self):
        for first, second, expected in [
            ("0.0.0.0", "10.0.0.1", True),
            ("::", "10.0.0.1", True),
            ("::", "::", True),
            ("2001:db8::1", "::", True),
            ("10.0.0.1", "10.0.0.1", True),
            ("localhost", "10.0.0.1", True),
            ("10.0.0.1", "127.0.0.1", False),
            ("2001:db8::1", "10.0.0.1", False),
            ("0.0.0.0", "::1", False),
        ]:
            self.assertEqual(agent.in_the_way(first, second), expected, (first, second))
            self.assertEqual(agent.in_the_way(second, first), expected, (second, first))

    def test_the_ports_are_those_of_the_whole_configuration(self):
        self.assertEqual(agent.listens({"listen": "[::]:1", "metrics": {"listen": None}}), {"pvelet_agent_listen": "[::]:1"})
        both = {"pvelet_agent_listen": "[::]:1", "pvelet_agent_metrics_listen": "10.0.0.1:2"}
        self.assertEqual(agent.listens({"listen": "[::]:1", "metrics": {"listen": "10.0.0.1:2"}}), both)
        self.assertEqual(agent.listens({"listen": "[::]:1"}), {"pvelet_agent_listen": "[::]:1"})

    def test_an_address_has_brackets_where_its_port_would_not_be_told_from_it(self):
        for host, expected in [
            ("192.0.2.1", "192.0.2.1:7443"),
            ("pve1.lab", "pve1.lab:7443"),
            ("2001:db8::11", "[2001:db8::11]:7443"),
            ("[2001:db8::11]", "[2001:db8::11]:7443"),
        ]:
            self.assertEqual(agent.endpoint(host, 7443), expected)

    def test_a_package_s_name_tells_its_version(self):
        for good in ["/a/b/pvelet-agent_0.2.0-1_amd64.deb", "pvelet-agent_1.0~rc1+git2_amd64.deb"]:
            self.assertEqual(agent.package_problems(good), [], good)
        for bad in ["pvelet-agent.deb", "pvelet-agent_amd64.deb", "/a_1/pvelet-agent.deb", "pvelet-agent_1_amd64.rpm", "pvelet-agent__amd64.deb"]:
            self.assertIn(bad, agent.package_problems(bad)[0])

    def test_texts_are_a_list_or_one_text_with_commas(self):
        for given, expected in [(["a", "b"], ["a", "b"]), ("a, b", ["a", "b"]), ("a", ["a"]), ("", []), ([], []), (None, [])]:
            self.assertEqual(agent.texts(given), expected)
        self.assertEqual(agent.preflight_problems(HOST, SETTINGS | {"storages": "local", "bridges": "vmbr0"}), [])

    def test_storages_follow_pve_s_file(self):
        text = "dir: local\n\tpath /var/lib/vz\n\nlvmthin: fast\n\tnodes a\n\tthinpool data\n\nnfs: off\n\tdisable\n\nrbd: all\n"
        self.assertEqual(agent.storages(text, "a"), {"local", "fast", "all"})
        self.assertEqual(agent.storages(text, "b"), {"local", "all"})
        self.assertEqual(agent.storages(None, "b"), set())

    def test_a_bad_node_name_is_told(self):
        for name in ["", "-a", "a_b", "a.b", "x" * 64]:
            self.assertEqual(len(agent.preflight_problems(HOST, SETTINGS | {"node": name})), 1, name)


class Certificates(unittest.TestCase):
    LEAF = {
        "identity": "spiffe://t.example/cluster/lab/host/pve1",
        "usage": "server",
        "status": "valid",
        "not_before": "then",
        "not_after": "later",
    }
    CA = LEAF | {"identity": "spiffe://t.example", "usage": "CA"}

    def test_a_host_takes_its_own_certificate_only(self):
        self.assertEqual(agent.certificate_problems([self.LEAF, self.CA], SETTINGS), [])
        for wrong, text in [
            ({"identity": "spiffe://t.example/cluster/lab/host/pve2"}, "host/pve2"),
            ({"identity": "spiffe://other/cluster/lab/host/pve1"}, "spiffe://other"),
            ({"usage": "client"}, "client"),
        ]:
            problems = agent.certificate_problems([self.LEAF | wrong], SETTINGS)
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(text, problems[0])
        self.assertEqual(len(agent.certificate_problems([self.CA], SETTINGS)), 1)

    def test_one_that_has_ended_stops_nothing_that_could_replace_it(self):
        for status in ["expired", "not yet valid", "ends soon"]:
            self.assertEqual(agent.certificate_problems([self.LEAF | {"status": status}], SETTINGS), [])

    def test_names_are_those_of_the_inventory_or_of_the_certificate_in_use(self):
        used = [self.CA | {"names": ["ca"]}, self.LEAF | {"names": ["pve1.lab", "10.0.0.1", "2001:db8::1"]}]
        self.assertEqual(
            agent.certificate_names([[], []], used), ["--dns", "pve1.lab", "--ip", "10.0.0.1", "--ip", "2001:db8::1"]
        )
        self.assertEqual(agent.certificate_names([["a"], []], used), ["--dns", "a"])
        self.assertEqual(agent.certificate_names([[], ["10.1.1.1"]], used), ["--ip", "10.1.1.1"])
        self.assertEqual(agent.certificate_names([[], []], []), [])

    def test_only_what_the_ca_has_issued_and_not_revoked_is_used(self):
        shown = [self.LEAF | {"serial": "aa"}]
        rows = [self.CA | {"serial": "01"}, self.LEAF | {"serial": "aa"}]
        self.assertTrue(agent.issued_and_valid(shown, rows))
        self.assertFalse(agent.issued_and_valid(shown, [rows[0], rows[1] | {"status": "revoked"}]))
        self.assertFalse(agent.issued_and_valid(shown, [rows[0]]))
        self.assertFalse(agent.issued_and_valid([], rows))

    def test_a_certificate_that_the_ca_has_revoked_is_known(self):
        shown = [self.LEAF | {"serial": "aa"}, self.CA | {"serial": "01"}]
        rows = [self.CA | {"serial": "01"}, self.LEAF | {"serial": "aa", "status": "revoked"}, self.LEAF | {"serial": "bb"}]
        self.assertTrue(agent.revoked(shown, rows))
        self.assertFalse(agent.revoked([self.LEAF | {"serial": "bb"}], rows))
        self.assertFalse(agent.revoked([self.LEAF | {"serial": "cc"}], rows))
        self.assertFalse(agent.revoked(shown, []))

    def test_an_expired_or_foreign_ca_is_refused(self):
        self.assertEqual(agent.ca_problems([self.CA], "t.example", "ca.crt"), [])
        ending = [self.CA, self.CA | {"status": "expired"}]
        self.assertEqual(agent.ca_problems(ending, "t.example", "ca.crt"), [])
        for shown, text in [
            ([], "pveletctl pki init"),
            ([self.CA | {"status": "expired"}], "expired"),
            ([self.CA | {"status": "not yet valid"}], "clock"),
            ([self.CA | {"identity": "spiffe://other"}], "other"),
        ]:
            problems = agent.ca_problems(shown, "t.example", "ca.crt")
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(text, problems[0])


class Ranges(unittest.TestCase):
    def test_hosts_have_vmids_of_their_own(self):
        self.assertEqual(agent.vmid_overlaps({"a": "100-199", "b": "200-299", "c": "", "d": None}), [])
        self.assertEqual(len(agent.vmid_overlaps({"a": "100-200", "b": "200-299"})), 1)
        self.assertEqual(len(agent.vmid_overlaps({"a": "100-999", "b": "200-299", "c": "250-260"})), 3)
        for bad in ["100", "a-b", "200-100", "100-", "-100"]:
            self.assertEqual(len(agent.vmid_overlaps({"a": bad})), 1, bad)


class Configuration(unittest.TestCase):
    def test_what_is_written_is_what_was_meant(self):
        config = {
            "mode": "manage",
            "listen": "[::]:7443",
            "tls": {"trust_domain": "t.example", "crl": None},
            "vm": {"short_lane": 4, "text": 'a "b"\\ \t\u00e9\U0001f600'},
            "empty": {},
            "none": {"key": None},
            "health": {"probe": False, "list": ["a", "b"]},
            "identity": [{"uri": "spiffe://x", "tenants": ["*"], "vlans": None}, {"uri": "spiffe://y", "tenants": []}],
        }
        read = tomllib.loads(agent.agent_toml(config))
        self.assertEqual(read["vm"], config["vm"])
        self.assertEqual(read["health"], config["health"])
        self.assertEqual(read["tls"], {"trust_domain": "t.example"})
        self.assertEqual(read["identity"], [{"uri": "spiffe://x", "tenants": ["*"]}, {"uri": "spiffe://y", "tenants": []}])
        self.assertNotIn("empty", read)
        self.assertNotIn("none", read)
        self.assertEqual(agent.agent_toml({"mode": "observe", "identity": []}), 'mode = "observe"\n')

    def test_only_what_the_agent_reloads_needs_no_restart(self):
        old = 'mode = "observe"\n[log]\nlevel = "info"\n[vm]\nshort_lane = 4\n'
        for new, restart in [
            (old, False),
            (old.replace("observe", "manage"), False),
            (old.replace("info", "debug"), False),
            (old.replace('[log]\nlevel = "info"\n', ""), False),
            (old + '[[identity]]\nuri = "spiffe://x"\ntenants = ["*"]\n', False),
            ("# a comment\n" + old, False),
            (old.replace("4", "5"), True),
            (old + "[limits]\nreads = 1\n", True),
            ('listen = "[::]:1"\n' + old, True),
        ]:
            self.assertEqual(agent.needs_restart(old, new), restart, new)
        self.assertTrue(agent.needs_restart("no toml", old))
        self.assertTrue(agent.needs_restart(None, old))


class Gate(unittest.TestCase):
    FACTS = {"node": "pve1", "mode": "manage", "quorate": True, "network_latched": False}

    def answer(self, **other) -> dict:
        return {"rc": 0, "stdout": json.dumps({"hosts": [{"facts": self.FACTS | other, "error": None}]})}

    def test_only_the_agent_that_is_meant_passes(self):
        self.assertTrue(agent.answers(self.answer(), "pve1", "manage"))
        self.assertTrue(agent.answers(self.answer(), "pve1", "any"))
        for result, text in [
            (self.answer(node="pve2"), "pve2"),
            (self.answer(mode="observe"), "observe"),
            (self.answer(quorate=False), "quorum"),
            (self.answer(network_latched=True), "network"),
            ({"rc": 5, "stdout": json.dumps({"hosts": [{"facts": None, "error": {"message": "refused"}}]})}, "refused"),
            ({"rc": 64, "stdout": "", "stderr": "no such file"}, "no such file"),
            ({"rc": 127, "msg": "no such program"}, "no such program"),
            ({"rc": 0, "stdout": "half {"}, "does not answer"),
        ]:
            self.assertFalse(agent.answers(result, "pve1", "manage"))
            problems = agent.answer_problems(result, "pve1", "manage")
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(text, problems[0])

    CHECK = {"id": "host.clock", "state": "failed", "seen": "off by 3 s", "remedy": "chronyc makestep", "observe_time": "now"}

    def doctor(self, *checks: dict, **other) -> dict:
        """An answer to `pveletctl doctor`."""
        hosts = [{"checks": list(checks)}] if checks else []
        return {"rc": 2, "stdout": json.dumps({"hosts": hosts, "errors": other.get("errors", [])})}

    def test_what_has_failed_stops_unless_it_may_fail(self):
        well = self.CHECK | {"id": "agent.certificate", "state": "degraded"}
        doctor = self.doctor(self.CHECK, well)
        self.assertEqual(agent.gate_problems(doctor, []), ["host.clock: off by 3 s; chronyc makestep"])
        for allowed in (["host.clock"], "host.clock", "other, host.clock"):
            self.assertEqual(agent.gate_problems(doctor, allowed), [])
        # A part of a name is no name.
        self.assertEqual(len(agent.gate_problems(doctor, "host.clock.more")), 1)

    def test_an_agent_that_does_not_tell_how_its_host_is_stops(self):
        for result, text in [
            (self.doctor(errors=[{"host": "pve1", "message": "gone"}]), "pve1: gone"),
            ({"rc": 64, "stdout": "", "stderr": "no such file"}, "no such file"),
            ({"rc": 2, "msg": "no such program"}, "no such program"),
            ({"rc": 0, "stdout": "half {"}, "half {"),
            ({"rc": 0, "stdout": "[]"}, "does not tell"),
        ]:
            problems = agent.gate_problems(result, ["host.clock"])
            self.assertEqual(len(problems), 1, problems)
            self.assertIn(text, problems[0])
            self.assertFalse(agent.all_seen(result))

    def test_a_check_without_an_end_is_told_and_stops_nothing(self):
        hung = {"id": "host.nfs", "state": "unknown", "seen": "did not end within 10 s"}
        doctor = self.doctor(self.CHECK | {"state": "ok"}, hung)
        self.assertFalse(agent.all_seen(doctor))
        self.assertEqual(agent.unseen(doctor), ["host.nfs: did not end within 10 s"])
        self.assertEqual(agent.gate_problems(doctor, []), [])
        self.assertTrue(agent.all_seen(self.doctor(self.CHECK)))
        # All is well: nothing is waited for, whatever was left out.
        self.assertTrue(agent.all_seen(doctor | {"rc": 0}))


class Firewall(unittest.TestCase):
    OURS = "pvelet-agent (Ansible)"
    RULE = {"type": "in", "action": "ACCEPT", "proto": "tcp", "dport": 7443, "enable": 1}

    def stored(self, pos: int, source: str, **other) -> dict:
        """As PVE tells a rule: numbers may be text."""
        return {**self.RULE, "dport": "7443", "source": source, "pos": pos, "comment": self.OURS, **other}

    def test_only_our_rules_are_planned_for(self):
        wanted = [{**self.RULE, "source": "10.0.0.0/24"}]
        rules = [self.stored(0, "10.0.0.0/24"), self.stored(1, "10.9.0.0/24"), self.stored(2, "0.0.0.0/0", comment="theirs")]
        self.assertEqual(firewall.plan([], wanted, self.OURS), (wanted, []))
        self.assertEqual(firewall.plan(rules, wanted, self.OURS), ([], [rules[1]]))
        make, remove = firewall.plan(rules, [], self.OURS)
        self.assertEqual((make, [r["pos"] for r in remove]), ([], [1, 0]))

    def test_a_rule_that_is_off_or_twice_there_is_no_rule_of_ours(self):
        wanted = [{**self.RULE, "source": "10.0.0.0/24"}]
        off = self.stored(0, "10.0.0.0/24", enable=0)
        self.assertEqual(firewall.plan([off], wanted, self.OURS), (wanted, [off]))
        twice = [self.stored(0, "10.0.0.0/24"), self.stored(1, "10.0.0.0/24")]
        self.assertEqual(firewall.plan(twice, wanted, self.OURS), ([], [twice[1]]))


class Facts(unittest.TestCase):
    def test_a_host_is_read_from_its_files(self):
        with tempfile.TemporaryDirectory() as root:
            files = {
                "etc/os-release": 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
                "etc/pve/corosync.conf": "totem {\n  cluster_name: lab\n  version: 2\n}\n",
                "etc/pve/nodes/pve1/x": "",
                "etc/pve/nodes/pve2/x": "",
                "etc/network/interfaces": "iface vmbr1 inet manual\n\tovs_type OVSBridge\niface eno1 inet manual\n",
                "sys/class/net/vmbr0/bridge/x": "",
                "sys/class/net/eno1/mtu": "1500",
            }
            for name, text in files.items():
                path = pathlib.Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            os.symlink("nodes/pve1", os.path.join(root, "etc/pve/local"))
            host = facts.Host(root)
            self.assertEqual(host.os_release(), {"id": "debian", "version": "13", "name": "Debian GNU/Linux 13 (trixie)"})
            self.assertEqual((host.cluster(), host.local_node()), ("lab", "pve1"))
            self.assertEqual(host.names("/etc/pve/nodes"), ["pve1", "pve2"])
            self.assertEqual(host.bridges(), ["vmbr0", "vmbr1"])
            self.assertIsNone(host.text("/etc/pve/storage.cfg"))
            self.assertIsNone(host.free_bytes("/none"))
            os.chmod(host.path("/etc/os-release"), 0o640)
            self.assertEqual((host.mode("/etc/os-release"), host.mode("/none")), ("0640", None))
            text = files["etc/os-release"].encode()
            self.assertEqual((host.digest("/etc/os-release"), host.digest("/none")), (hashlib.sha256(text).hexdigest(), None))

    def test_who_listens_is_found(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            found = facts.Host("/").listeners({port})
            self.assertEqual([(who["pid"], who["address"], who["port"]) for who in found], [(os.getpid(), "127.0.0.1", port)])
            self.assertEqual(facts.Host("/").listeners(set()), [])

    def test_the_kernel_s_addresses_are_read(self):
        for text, address in [
            ("0100007F", "127.0.0.1"),
            ("00000000", "0.0.0.0"),
            ("00000000000000000000000000000000", "::"),
            ("B80D0120000000000000000011000000", "2001:db8::11"),
            ("0000000000000000FFFF00000100007F", "127.0.0.1"),
        ]:
            self.assertEqual(facts.kernel_address(text), address)

    def test_an_address_that_the_host_lacks_is_known_without_its_port(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.assertIsNone(facts.unbindable(f"127.0.0.1:{listener.getsockname()[1]}"))
        self.assertEqual(facts.unbindable("192.0.2.99:7443"), "EADDRNOTAVAIL")
        for free in ["0.0.0.0:7443", "no address:1", "", ":7443"]:
            self.assertIsNone(facts.unbindable(free), free)
        self.assertEqual([facts.port_of(text) for text in ("[::]:7443", "[::]", "a:b", "")], [7443, 0, 0, 0])

    def test_an_agent_that_ends_again_and_again_does_not_run(self):
        for words, active, failing in [
            ({"ActiveState": "active", "SubState": "running", "NRestarts": "3"}, True, False),
            ({"ActiveState": "reloading", "SubState": "reload"}, True, False),
            ({"ActiveState": "activating", "SubState": "start", "NRestarts": "0"}, True, False),
            ({"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "0"}, False, True),
            ({"ActiveState": "activating", "SubState": "start", "NRestarts": "7"}, False, True),
            ({"ActiveState": "failed", "SubState": "failed", "NRestarts": "7"}, False, False),
            ({"ActiveState": "inactive", "SubState": "dead"}, False, False),
            ({}, False, False),
        ]:
            found = facts.standing(words)
            self.assertEqual((found["active"], found["failing"]), (active, failing), words)

    def test_an_empty_host_is_read_without_an_error(self):
        with tempfile.TemporaryDirectory() as root:
            host = facts.look(root, ["[::]:7443"])
            self.assertEqual((host["pve"]["nodes"], host["bridges"], host["listeners"], host["certificate"]), ([], [], [], None))
            self.assertTrue(agent.preflight_problems({**host, "asked": host["time"]}, SETTINGS))


if __name__ == "__main__":
    unittest.main()
