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


class Decisions(unittest.TestCase):
    def decided(self, hosts: dict, wanted: str) -> dict:
        """What the role makes of hosts: the value of an expression for each."""
        with Here() as here:
            told = {"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": "{{ inventory_hostname }}.told"}, "vars": {"told": wanted}}
            imported = {"ansible.builtin.import_role": {"name": "pvelet.pvelet.pvelet_agent", "tasks_from": "installed"}}
            more = COMMON | {"__pvelet_agent_text": "former = 1\n"}
            done = here.run(play(imported, told), hosts, more)
            self.assertTrue(done.good, done.text)
            return {name: json.loads(here.read(f"{name}.told")) for name in hosts}

    def test_an_agent_that_runs_gets_another_version_by_an_upgrade_alone(self):
        rows = {
            "same": ({}, {}, False, False),
            "other": ({}, {"pvelet_agent_package": "/x/pvelet-agent_2.0-1_amd64.deb"}, False, False),
            "upgrade": ({}, {"pvelet_agent_package": "/x/pvelet-agent_2.0-1_amd64.deb", "pvelet_agent_upgrade": True}, True, True),
            "text": ({}, {"pvelet_agent_version": "2.0-1", "pvelet_agent_upgrade": "false"}, False, False),
            "down": ({"active": False}, {"pvelet_agent_version": "2.0-1"}, True, False),
            "loop": ({"active": False, "failing": True}, {"pvelet_agent_version": "2.0-1"}, True, False),
            "stale": ({"stale": True}, {}, False, True),
            "written": ({"outdated": True}, {}, False, True),
        }
        hosts = {
            name: {**variables, "__pvelet_agent_host": HOST | {"service": HOST["service"] | service}}
            for name, (service, variables, _, _) in rows.items()
        }
        self.assertEqual(
            self.decided(hosts, "{{ [__pvelet_agent_install, __pvelet_agent_restarts] }}"),
            {name: [installs, restarts] for name, (_, _, installs, restarts) in rows.items()},
        )

    def test_what_is_given_as_text_is_taken_for_what_it_means(self):
        values = {
            "ansible_host": "2001:db8::11",
            "pvelet_agent_min_free_mib": "100",
            "pvelet_agent_max_clock_skew": "600",
            "pvelet_agent_allow_debian_12": "false",
            "pvelet_agent_import_folders": "/a,/b",
            "pvelet_agent_metrics_listen": "[::]:9100",
        }
        wanted = (
            "{{ [pvelet_agent_address, __pvelet_agent_settings.min_free_mib, __pvelet_agent_settings.max_clock_skew,"
            " __pvelet_agent_settings.allow_debian_12, __pvelet_agent_config.volumes.import_folders, __pvelet_agent_settings.listens] }}"
        )
        listens = {"pvelet_agent_listen": "[::]:7443", "pvelet_agent_metrics_listen": "[::]:9100"}
        self.assertEqual(
            self.decided({"a": {**values, "__pvelet_agent_host": HOST}}, wanted)["a"],
            ["[2001:db8::11]:7443", 100, 600, False, ["/a", "/b"], listens],
        )

    def test_a_certificate_is_due_when_it_ends_soon_or_is_revoked(self):
        def shown(status: str, days: int) -> str:
            return json.dumps([{"usage": "server", "serial": "aa", "status": status, "days_left": days}])

        rows = {"good": ("valid", 100, False), "soon": ("valid", 10, True), "revoked": ("revoked", 100, True)}
        hosts = {
            name: {
                "__pvelet_agent_host": HOST | {"certificate": "PEM"},
                "__pvelet_agent_certificate": {"rc": 0, "stdout": shown("valid", days)},
                "__pvelet_agent_issued": {"stdout": shown(status, days)},
            }
            for name, (status, days, _) in rows.items()
        }
        # Where another CA signs nobody is asked.
        hosts["elsewhere"] = {key: value for key, value in hosts["good"].items() if key != "__pvelet_agent_issued"}
        expected = {name: due for name, (_, _, due) in rows.items()} | {"elsewhere": False}
        self.assertEqual(self.decided(hosts, "{{ __pvelet_agent_certificate_due }}"), expected)
