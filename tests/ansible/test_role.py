"""What the role does, by Ansible itself on this machine, with scripts in the place of programs."""

import io
import json
import os
import tarfile
import unittest

from here import Here, play, role

# Tells what lies in files beside it: HOST.answer, HOST.doctor, each with what is printed, and HOST.answer.rc, HOST.doctor.rc.
PVELETCTL = """
for word; do case $word in *=*:*) host=${word%%=*} ;; esac; done
case " $* " in *" doctor "*) what=doctor ;; *) what=answer ;; esac
cd "$(dirname "$0")/../answers"
echo "$what" >>"$host.calls"
cat "$host.$what"
exit "$(cat "$host.$what.rc" 2>/dev/null || echo 0)"
"""
COMMON = {
    "pvelet_agent_trust_domain": "t.example",
    "pvelet_agent_mode": "manage",
    "pvelet_agent_ca": "ca.crt",
    "pvelet_agent_crl": "",
    "pvelet_agent_client_cert": "me.crt",
    "pvelet_agent_client_key": "me.key",
}


class Gate(unittest.TestCase):
    FACTS = {"mode": "manage", "quorate": True, "network_latched": False}
    CHECKS = [
        {"id": "host.clock", "state": "ok", "seen": "right", "observe_time": "now"},
        {"id": "host.nfs", "state": "unknown", "seen": "a look at /mnt/nfs did not end", "observe_time": None},
    ]

    def test_a_person_reads_why_a_host_is_not_let_through(self):
        with Here() as here:
            here.program("pveletctl", PVELETCTL)
            hosts = {
                "well": ({}, 0, self.CHECKS[:1]),
                "hung": ({}, 1, self.CHECKS),
                "sick": ({}, 2, [self.CHECKS[0] | {"state": "failed", "seen": "off by 3 s", "remedy": "chronyc makestep"}, self.CHECKS[1]]),
                "broken": ({}, 64, None),
                "mode": ({"mode": "observe"}, 0, self.CHECKS),
                "quorum": ({"quorate": False}, 0, self.CHECKS),
                "silent": (None, 0, self.CHECKS),
            }
            for name, (facts, status, checks) in hosts.items():
                known = facts is not None
                told = {"facts": {**self.FACTS, "node": name, **facts} if known else None, "error": {"message": "connection refused"}}
                here.write(f"answers/{name}.answer", {"hosts": [told]})
                here.write(f"answers/{name}.answer.rc", "0" if known else "5")
                here.write(f"answers/{name}.doctor", {"hosts": [{"state": "x", "checks": checks}], "errors": []} if checks else "")
                here.write(f"answers/{name}.doctor.rc", str(status))
            through = {"ansible.builtin.debug": {"msg": "{{ inventory_hostname }} is through"}}
            quick = {"__pvelet_agent_pause": 0, "__pvelet_agent_looks": 2, "pvelet_agent_gate_patience": 6}
            done = here.run(play(role("answer"), role("well"), through), dict.fromkeys(hosts, {}), COMMON | quick)
            for name, text in [
                ("sick", "host.clock: off by 3 s; chronyc makestep"),
                ("broken", "does not tell how the host is"),
                ("mode", "the agent is in mode 'observe', not 'manage'"),
                ("quorum", "PVE's cluster has no quorum"),
                ("silent", "does not answer: connection refused (on the host: systemctl status pvelet-agent"),
            ]:
                self.assertIn(text, done.failure(name), done.text)
                self.assertNotIn(f"{name} is through", done.text)
            # These are all errors that are told: nothing raw beside them.
            self.assertEqual(done.text.count("[ERROR]: Task failed"), 5, done.text)
            # A look that never ends stops no upgrade, and is told.
            for name in ("well", "hung"):
                self.assertEqual(done.failure(name), "")
                self.assertIn(f"{name} is through", done.text)
            self.assertIn("host.nfs: a look at /mnt/nfs did not end", done.text)
            # It was waited for, each time as long as was said.
            self.assertEqual(here.read("answers/well.calls").split(), ["answer", "doctor"])
            self.assertEqual(here.read("answers/hung.calls").split(), ["answer"] + 3 * ["doctor"])
            self.assertEqual(here.read("answers/silent.calls").split(), 3 * ["answer"])


class Package(unittest.TestCase):
    # Packages are archives as they are; what they are and where they lie is written down.
    LOOK = 'stat --format "%a %u %n" "$(dirname "$file")" "$file" >>"$here/seen"; sha256sum <"$file" >>"$here/sums"'

    def test_nobody_else_reaches_a_package_between_its_copy_and_its_installation(self):
        with Here() as here:
            at = f"here={here.path}"
            here.program(
                "dpkg-deb",
                f"""{at}; for file; do [ -f "$file" ] && break; done
                case "$1 $3" in "--field Package") echo pvelet-agent ;; "--field Version") echo 1.0-1 ;; *) {self.LOOK}; cat "$file" ;; esac""",
            )
            here.program("dpkg", f'{at}; for file; do :; done; {self.LOOK}; case $file in *_2.0*) echo spoilt >&2; exit 1 ;; esac')
            agent = b"#!/bin/sh\n"
            with tarfile.open(here.path / "pvelet-agent_1.0-1_amd64.deb", "w") as archive:
                member = tarfile.TarInfo("./usr/bin/pvelet-agent")
                member.size, member.mode = len(agent), 0o755
                archive.addfile(member, io.BytesIO(agent))
            (here.path / "pvelet-agent_2.0-1_amd64.deb").write_bytes((here.path / "pvelet-agent_1.0-1_amd64.deb").read_bytes())
            (here.path / "run").mkdir()
            hosts = {
                name: {
                    "pvelet_agent_package": str(here.path / f"pvelet-agent_{version}_amd64.deb"),
                    # Its power was cut: dpkg itself is called, which can be stood in for.
                    "__pvelet_agent_host": {"package": {"status": "half-installed", "version": "0.1"}, "service": {"active": False}},
                }
                for name, version in [("good", "1.0-1"), ("other", "2.0-1")]
            }
            more = COMMON | {"__pvelet_agent_run": str(here.path / "run"), "__pvelet_agent_text": 'mode = "observe"\n'}
            done = here.run(play(role("package"), role("check_config")), hosts, more)
            self.assertEqual(done.failure("good"), "", done.text)
            self.assertIn("spoilt", done.text)
            # Each package twice: a folder that nobody else may look into, and the file in it.
            seen = [line.split(" ", 2) for line in here.read("seen").splitlines()]
            folders = {path: mode for mode, _, path in seen if not path.endswith(".deb")}
            self.assertEqual(len(folders), 3, seen)
            self.assertEqual(set(folders.values()), {"700"}, seen)
            self.assertEqual({int(owner) for _, owner, _ in seen}, {os.getuid()}, seen)
            self.assertEqual(len(set(here.read("sums").split())), 2, "another file was installed than the one that was brought")
            self.assertEqual(list((here.path / "run").iterdir()), [], "something is left")



HOST = {
    "package": {"status": "installed", "version": "1.0-1"},
    "service": {"active": True, "failing": False, "stale": False, "outdated": False},
    "config": "former = 1\n",
    "certificate": None,
    "key": True,
}


def shown(status: str, days: int) -> str:
    """A host's certificate as `pveletctl pki show` tells it."""
    return json.dumps([{"usage": "server", "serial": "aa", "status": status, "days_left": days}])


class Decisions(unittest.TestCase):
    """What the role makes of hosts: its variables, looked at in one run."""

    # Service and variables; whether the package is installed, and whether an agent that runs is started anew.
    VERSIONS = {
        "same": ({}, {}, False, False),
        "other": ({}, {"pvelet_agent_package": "/x/pvelet-agent_2.0-1_amd64.deb"}, False, False),
        "upgrade": ({}, {"pvelet_agent_package": "/x/pvelet-agent_2.0-1_amd64.deb", "pvelet_agent_upgrade": True}, True, True),
        "text": ({}, {"pvelet_agent_version": "2.0-1", "pvelet_agent_upgrade": "false"}, False, False),
        "down": ({"active": False}, {"pvelet_agent_version": "2.0-1"}, True, False),
        "loop": ({"active": False, "failing": True}, {"pvelet_agent_version": "2.0-1"}, True, False),
        "stale": ({"stale": True}, {}, False, True),
        "written": ({"outdated": True}, {}, False, True),
    }
    # What the certificate's status is at the CA, and for how many days it is valid; whether it is due.
    CERTIFICATES = {"good": ("valid", 100, False), "soon": ("valid", 10, True), "revoked": ("revoked", 100, True), "elsewhere": (None, 100, False)}
    # As by -e KEY=VALUE.
    TEXTS = {
        "ansible_host": "2001:db8::11",
        "pvelet_agent_min_free_mib": "100",
        "pvelet_agent_max_clock_skew": "600",
        "pvelet_agent_allow_debian_12": "false",
        "pvelet_agent_import_folders": "/a,/b",
        "pvelet_agent_metrics_listen": "[::]:9100",
    }
    ASKED = [
        "__pvelet_agent_install",
        "__pvelet_agent_restarts",
        "__pvelet_agent_certificate_due",
        "pvelet_agent_address",
        "__pvelet_agent_settings",
        "__pvelet_agent_config.volumes.import_folders",
    ]

    @classmethod
    def setUpClass(cls) -> None:
        hosts = {"texts": {**cls.TEXTS, "__pvelet_agent_host": HOST}}
        for name, (service, variables, _, _) in cls.VERSIONS.items():
            hosts[name] = {**variables, "__pvelet_agent_host": HOST | {"service": HOST["service"] | service}}
        for name, (status, days, _) in cls.CERTIFICATES.items():
            certificate = {"rc": 0, "stdout": shown("valid", days)}
            hosts[name] = {"__pvelet_agent_host": HOST | {"certificate": "PEM"}, "__pvelet_agent_certificate": certificate}
            # Where another CA signs nobody is asked.
            hosts[name] |= {"__pvelet_agent_issued": {"stdout": shown(status, days)}} if status else {}
        with Here() as here:
            told = {"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": "{{ inventory_hostname }}.told"}}
            told["vars"] = {"told": "{{ {" + ", ".join(f"'{name}': {name}" for name in cls.ASKED) + "} }}"}
            imported = {"ansible.builtin.import_role": {"name": "pvelet.pvelet.pvelet_agent", "tasks_from": "installed"}}
            done = here.run(play(imported, told), hosts, COMMON | {"__pvelet_agent_text": "former = 1\n"})
            assert done.good, done.text
            cls.decided = {name: json.loads(here.read(f"{name}.told")) for name in hosts}

    def test_an_agent_that_runs_gets_another_version_by_an_upgrade_alone(self):
        for name, (_, _, installs, restarts) in self.VERSIONS.items():
            found = self.decided[name]
            self.assertEqual((found["__pvelet_agent_install"], found["__pvelet_agent_restarts"]), (installs, restarts), name)

    def test_what_is_given_as_text_is_taken_for_what_it_means(self):
        found = self.decided["texts"]
        settings = {"min_free_mib": 100, "max_clock_skew": 600, "allow_debian_12": False}
        settings["listens"] = {"pvelet_agent_listen": "[::]:7443", "pvelet_agent_metrics_listen": "[::]:9100"}
        self.assertEqual({key: found["__pvelet_agent_settings"][key] for key in settings}, settings)
        self.assertEqual(found["pvelet_agent_address"], "[2001:db8::11]:7443")
        self.assertEqual(found["__pvelet_agent_config.volumes.import_folders"], ["/a", "/b"])

    def test_a_certificate_is_due_when_it_ends_soon_or_is_revoked(self):
        for name, (_, _, due) in self.CERTIFICATES.items():
            self.assertEqual(self.decided[name]["__pvelet_agent_certificate_due"], due, name)


class Whole(unittest.TestCase):
    """Playbooks from their beginning to their end."""

    # Each host has a folder of its own as its root, and what is asked of it is written down there.
    PVELETCTL = """
    for word; do case $word in *=*:*) host=${word%%=*} ;; esac; done
    echo "$*" >>"$AT/called"
    case $* in
      "version --client") ;;
      "pki show"*ca.crt*) echo '[{"usage": "CA", "status": "valid", "identity": "spiffe://t.example"}]' ;;
      "pki show"*me.crt*) echo '[{"usage": "client", "serial": "01", "status": "valid", "identity": "x"}]' ;;
      "pki show"*/pki" "*) cat "$AT/issued.json" ;;
      "pki show"*) serial=$(cat "$3"); host=${serial#serial-}; host=${host%%-*}
        echo "[{\\"usage\\": \\"server\\", \\"serial\\": \\"$serial\\", \\"status\\": \\"valid\\", \\"days_left\\": 100, \\"names\\": [],
               \\"identity\\": \\"spiffe://t.example/cluster/$host/host/$host\\"}]" ;;
      "pki sign"*) cat >/dev/null; while [ "$1" != --node ]; do shift; done; echo "serial-$2-new" >"$AT/pki/issued/host-$2_$2.crt" ;;
      *doctor) echo '{"hosts": [{"state": "ok", "checks": [{"id": "x", "state": "ok", "seen": "x", "observe_time": "now"}]}], "errors": []}' ;;
      *"get host") echo "{\\"hosts\\": [{\\"facts\\": {\\"node\\": \\"$host\\", \\"mode\\": \\"manage\\", \\"quorate\\": true, \\"network_latched\\": false, \\"agent_version\\": \\"1.0\\"}}]}" ;;
    esac
    """
    AGENT = """
    root=$(dirname "$0"); echo "$*" | sed "s#$root/##; s#/[^ ]*/##" >>"$root/asked"
    case $1 in
      check-config) [ ! -e "$root/broken" ] || [ "$2" = --no-certificates ] || { echo "ca.crt: is no certificate" >&2; exit 1; } ;;
      signing-request) ls "$root/tls" | grep next >>"$root/asked"; echo request ;;
      install-certificate) cp "$2" "$root/tls/agent.crt"; echo installed ;;
    esac
    """
    SYSTEMCTL = """
    case $* in
      *show*) [ "$(cat "$AT/state" 2>/dev/null)" != down ] || { echo ActiveState=failed; exit 0; }
        printf '%s\\n' LoadState=loaded ActiveState=active SubState=running UnitFileState=enabled MainPID=0 StateChangeTimestamp=@4000000000 ;;
      is-enabled*|*" is-enabled "*) echo enabled ;;
      *) echo "$*" >>"$AT/systemd" ;;
    esac
    """

    def here(self, hosts: list[str]) -> tuple[Here, dict]:
        """Programs, a CA and hosts with an agent of version 1.0-1; and the variables of all."""
        here = Here()
        at = f"AT={here.path}"
        here.program("pveletctl", at + self.PVELETCTL)
        here.program("systemctl", at + self.SYSTEMCTL)
        here.program("dpkg-query", "echo installed 1.0-1")
        python = here.program("python", "echo 1")
        here.write("pki/ca.crt", "ca\n")
        here.write("pki/ca.crl", "crl\n")
        (here.path / "pki" / "issued").mkdir()
        here.write("pvelet-agent_2.0-1_amd64.deb", "a package")
        rows = [{"usage": "client", "serial": "01", "status": "valid"}]
        for name in hosts:
            status = "revoked" if name == "revoked" else "valid"
            rows.append({"usage": "server", "serial": f"serial-{name}-old", "status": status})
            agent = here.program("agent", self.AGENT)
            for file, text in {
                "etc/os-release": 'ID=debian\nVERSION_ID="13"\n',
                f"etc/pve/nodes/{name}/x": "",
                "etc/pve/storage.cfg": "",
                "usr/bin/x": "",
                "var/x": "",
                "etc/pvelet/agent.toml": 'mode = "observe"\n',
                "etc/pvelet/tls/agent.crt": f"serial-{name}-old\n",
                "etc/pvelet/tls/agent.key": "key",
                "etc/pvelet/tls/agent.key.next": "somebody else's",
                "etc/pvelet/tls/ca.crt": "ca\n",
                "etc/pvelet/tls/ca.crl": "crl\n",
            }.items():
                here.write(f"{name}/{file}", text)
            os.symlink(f"nodes/{name}", here.path / name / "etc/pve/local")
            os.symlink(agent, here.path / name / "etc/pvelet/agent")
            (here.path / name / "usr/bin/python3").symlink_to(python)
        here.write("issued.json", rows)
        root = f"{here.path}/{{{{ inventory_hostname }}}}"
        return here, COMMON | {
            "__pvelet_agent_root": root,
            "__pvelet_agent_program": f"{root}/etc/pvelet/agent",
            "__pvelet_agent_file": f"{root}/etc/pvelet/agent.toml",
            "__pvelet_agent_tls": f"{root}/etc/pvelet/tls",
            "__pvelet_agent_pause": 0,
            "pvelet_agent_pki_dir": str(here.path / "pki"),
            "pvelet_agent_ca": str(here.path / "pki/ca.crt"),
            "pvelet_agent_crl": str(here.path / "pki/ca.crl"),
            "pvelet_agent_client_cert": "me.crt",
            "pvelet_agent_package": str(here.path / "pvelet-agent_2.0-1_amd64.deb"),
            "pvelet_agent_min_free_mib": "1",
        }

    def test_an_install_takes_configuration_and_certificates_over_and_leaves_the_version(self):
        # One after the other, since agents are started anew; the last is not.
        names = ["old", "revoked", "spoilt"]
        here, more = self.here(names)
        with here:
            here.write("spoilt/etc/pvelet/broken", "")
            done = here.run("pvelet.pvelet.install", dict.fromkeys(names, {}), more)
            self.assertEqual(done.failure("old") + done.failure("revoked"), "", done.text)
            self.assertIn("pvelet-agent 1.0-1 stays, the inventory names 2.0-1: pvelet.pvelet.upgrade brings it", " ".join(done.text.split()))
            for name in names:
                self.assertIn('mode = "manage"', here.read(f"{name}/etc/pvelet/agent.toml"), done.text)
            asked = {name: here.read(f"{name}/etc/pvelet/asked").splitlines() for name in names}
            # The configuration first, without certificates that come after it; then both, before an agent is ended.
            self.assertEqual([line.split()[:2] for line in asked["old"]][-1], ["check-config"], asked)
            self.assertTrue(all(line.startswith("check-config --no-certificates") for line in asked["old"][:-1]), asked)
            self.assertIn("ca.crt: is no certificate", done.failure("spoilt"), done.text)
            self.assertEqual(here.read("systemd").count("restart"), 2, here.read("systemd"))
            # A new key, not the one that waited.
            self.assertEqual(here.read("revoked/etc/pvelet/tls/agent.crt"), "serial-revoked-new\n", done.text)
            self.assertNotIn("agent.key.next", asked["revoked"])
            self.assertIn("somebody else's", here.read("old/etc/pvelet/tls/agent.key.next"))

    def test_an_upgrade_begins_with_an_agent_that_runs(self):
        here, more = self.here(["a"])
        with here:
            here.write("state", "down")
            done = here.run("pvelet.pvelet.upgrade", {"a": {}}, more, arguments=("--check",))
            self.assertIn("pvelet-agent 1.0-1 is installed, and does not run", done.failure("a"), done.text)
            self.assertIn("pvelet.pvelet.install brings this one up", done.failure("a"), done.text)

    def test_health_is_asked_with_a_certificate_that_is_valid(self):
        here, more = self.here(["a"])
        with here:
            rows = json.loads(here.read("issued.json"))
            here.write("issued.json", [row | {"status": "ends soon" if row["usage"] == "client" else "valid"} for row in rows])
            done = here.run("pvelet.pvelet.health", {"a": {}}, more)
            self.assertEqual(done.failure("a"), "", done.text)
            called = here.read("called")
            self.assertIn("pki issue person ansible --role reader", called)
            self.assertLess(called.index("pki issue"), called.index("get host"), called)
