"""How the playbooks end when a host is lost: by Ansible itself, with their own keywords and without their tasks."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import yaml

PLAYBOOKS = pathlib.Path(__file__).parents[2] / "ansible" / "playbooks"
KEYWORDS = ("serial", "force_handlers", "any_errors_fatal", "max_fail_percentage")


def plays() -> dict:
    """The plays that go from host to host, by their playbook's name, each with what decides how it ends."""
    found = {}
    for file in sorted(PLAYBOOKS.glob("*.yml")):
        for play in yaml.safe_load(file.read_text(encoding="utf-8")):
            if "serial" in play:
                found[file.stem] = {key: play[key] for key in KEYWORDS if key in play}
    return found


def reached(keywords: dict, lost: dict) -> list[str]:
    """The hosts that come to their task, of three of which the second is `lost`."""
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = {"all": {"hosts": {"a": here, "b": {**here, **lost}, "c": here}}}
    tasks = [
        {
            "block": [{"ansible.builtin.command": {"argv": ["test", "-e", "{{ there | default('/') }}"]}, "changed_when": False}],
            "always": [{"ansible.builtin.ping": {}}],
        },
        {"ansible.builtin.debug": {"msg": "came to {{ inventory_hostname }}"}},
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = {"inventory.json": inventory, "play.json": [{"hosts": "all", "gather_facts": False, "tasks": tasks, **keywords}]}
        for name, content in files.items():
            pathlib.Path(folder, name).write_text(json.dumps(content), encoding="utf-8")
        done = subprocess.run(
            ["ansible-playbook", "--inventory", "inventory.json", "play.json"],
            cwd=folder,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_SSH_ARGS": "-F none"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode != 0, done.stdout + done.stderr
    return [host for host in "abc" if f"came to {host}" in done.stdout]


class FromHostToHost(unittest.TestCase):
    def test_the_first_host_that_fails_or_is_not_reached_ends_the_play(self):
        self.assertEqual(list(plays()), ["mode", "rotate_certificates", "upgrade"])
        # Nobody listens on the port of discard.
        unreachable = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
        for keywords in {json.dumps(keywords): keywords for keywords in plays().values()}.values():
            for lost in ({"there": "/none/such"}, unreachable):
                with self.subTest(keywords=keywords, lost=lost):
                    self.assertEqual(reached(keywords, lost), ["a"])


if __name__ == "__main__":
    unittest.main()
