"""How the playbooks end when a host is lost: by Ansible itself, with their own keywords and without their tasks."""

import json
import unittest

import yaml
from here import REPOSITORY, Here, play

KEYWORDS = ("serial", "force_handlers", "any_errors_fatal", "max_fail_percentage")
# Nobody listens on the port of discard.
UNREACHABLE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
FAILS = {"there": "/none/such"}
# As preflight.yml leaves it where an agent that runs is started anew.
RESTARTS = {"pvelet_agent_restarts": ["c"]}


def plays() -> dict:
    """The plays that go from host to host, by their playbook's name, each with what decides how it ends."""
    found = {}
    for file in sorted((REPOSITORY / "ansible" / "playbooks").glob("*.yml")):
        for one in yaml.safe_load(file.read_text(encoding="utf-8")):
            if "serial" in one:
                found[file.stem] = {key: one[key] for key in KEYWORDS if key in one}
    return found


def reached(keywords: dict, lost: dict, groups: dict) -> tuple[list[str], list[str]]:
    """The hosts that come to their task, and to the end, of three of which the second is `lost`."""
    tasks = [
        {"ansible.builtin.debug": {"msg": "began with {{ inventory_hostname }}"}},
        {
            "block": [{"ansible.builtin.command": {"argv": ["test", "-e", "{{ there | default('/') }}"]}, "changed_when": False}],
            "always": [{"ansible.builtin.ping": {}}],
        },
        {"ansible.builtin.debug": {"msg": "came to {{ inventory_hostname }}"}},
    ]
    with Here() as here:
        done = here.run(play(*tasks, **keywords), {"a": {}, "b": lost, "c": {}}, groups=groups)
    assert not done.good, done.text
    return tuple([host for host in "abc" if f"{words} {host}" in done.text] for words in ("began with", "came to"))


class FromHostToHost(unittest.TestCase):
    def test_the_first_host_that_fails_or_is_not_reached_ends_the_play(self):
        self.assertEqual(list(plays()), ["install", "mode", "rotate_certificates", "upgrade"])
        for keywords in {json.dumps(keywords): keywords for keywords in plays().values()}.values():
            for lost in (FAILS, UNREACHABLE):
                with self.subTest(keywords=keywords, lost=lost):
                    self.assertEqual(reached(keywords, lost, RESTARTS), (["a", "b"], ["a"]))

    def test_an_install_that_restarts_no_agent_is_made_on_all_hosts_at_once(self):
        # What fails on one leaves none of the others half done.
        self.assertEqual(reached(plays()["install"], FAILS, {}), (["a", "b", "c"], ["a", "c"]))


if __name__ == "__main__":
    unittest.main()
