#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Rules of a PVE host's firewall for the agent's port, made by PVE's own interface. Only rules with our comment are touched."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pve_firewall
short_description: Let clients reach pvelet-agent through PVE's firewall
description:
  - Keeps one rule for each source in the firewall of a PVE node (C(/etc/pve/nodes/NODE/host.fw)), written by PVE itself (C(pvesh)), under its locks.
  - Its rules carry a comment by which they are known. No other rule is changed, removed or moved.
options:
  node:
    description: The PVE node.
    type: str
    required: true
  port:
    description: The agent's port.
    type: int
    required: true
  sources:
    description: Addresses, networks, or names of aliases and IP sets (C(dc/admins), C(+dc/admins)) that may connect. Empty removes all rules of ours.
    type: list
    elements: str
    default: []
  comment:
    description: The comment by which the rules are known.
    type: str
    default: pvelet-agent (Ansible)
author:
  - pvelet authors
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Let the controllers in
  pvelet.pvelet.pve_firewall:
    node: pve1
    port: 7443
    sources: [10.0.0.0/24]
"""

RETURN = r"""
# It returns nothing of its own.
"""

import json
import subprocess

from ansible.module_utils.basic import AnsibleModule


def same(rule: dict, wanted: dict) -> bool:
    """Whether a rule is as wanted. PVE leaves out what has its default."""
    return all(str(rule.get(key, "")) == str(value) for key, value in wanted.items())


def plan(rules: list[dict], wanted: list[dict], comment: str) -> tuple[list[dict], list[dict]]:
    """What is to be made, and what of ours to be removed: the last ones first, so that places do not move."""
    left = list(wanted)
    surplus = []
    for rule in (r for r in rules if r.get("comment", "").strip() == comment):
        match = next((w for w in left if same(rule, w)), None)
        if match is None:
            surplus.append(rule)
        else:
            left.remove(match)
    return left, sorted(surplus, key=lambda rule: int(rule["pos"]), reverse=True)


def line(rule: dict) -> str:
    """A rule as people read it in host.fw."""
    start = "" if str(rule.get("enable", 0)) == "1" else "|"
    source = f" -source {rule['source']}" if rule.get("source") else ""
    return f"{start}{str(rule.get('type', '')).upper()} {rule.get('action', '')}{source} -p {rule.get('proto', '')} -dport {rule.get('dport', '')}"


class Failed(Exception):
    """PVE refused something."""


def pvesh(*arguments: str) -> str:
    """A call of PVE's interface."""
    try:
        done = subprocess.run(["pvesh", *arguments], capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError as error:
        raise Failed("there is no program pvesh: is this a PVE host?") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"pvesh {' '.join(arguments)} did not answer within 60 s: is the cluster quorate?") from error
    if done.returncode:
        raise Failed(f"pvesh {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def read(at: str) -> list[dict]:
    """All rules of the node."""
    return json.loads(pvesh("get", at, "--output-format", "json"))


def main() -> None:
    """The module."""
    options = {
        "node": {"type": "str", "required": True},
        "port": {"type": "int", "required": True},
        "sources": {"type": "list", "elements": "str", "default": []},
        "comment": {"type": "str", "default": "pvelet-agent (Ansible)"},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    comment = module.params["comment"]
    at = f"/nodes/{module.params['node']}/firewall/rules"
    rule = {"type": "in", "action": "ACCEPT", "proto": "tcp", "dport": module.params["port"], "enable": 1}
    wanted = [{**rule, "source": source} for source in dict.fromkeys(module.params["sources"])]
    try:
        rules = read(at)
        make, remove = plan(rules, wanted, comment)
        if not module.check_mode:
            # First the new ones: nobody is shut out meanwhile.
            for new in make:
                pvesh("create", at, *(f"--{key}={value}" for key, value in {**new, "comment": comment}.items()))
            # Places move with each change. With the digest of what was read, PVE refuses to take another rule for ours.
            while surplus := plan(read(at), wanted, comment)[1]:
                digest = [f"--digest={surplus[0]['digest']}"] if surplus[0].get("digest") else []
                pvesh("delete", f"{at}/{surplus[0]['pos']}", *digest)
    except (Failed, ValueError) as error:
        module.fail_json(msg=f"the firewall of {module.params['node']}: {error}")
    ours = [line(r) for r in rules if r.get("comment", "").strip() == comment]
    gone = [line(r) for r in remove]
    after = [text for text in ours if text not in gone] + [line(r) for r in make]
    diff = {"before": "".join(f"{text}\n" for text in sorted(ours)), "after": "".join(f"{text}\n" for text in sorted(after))}
    diff["before_header"] = diff["after_header"] = f"{at} ({comment})"
    module.exit_json(changed=bool(make or remove), diff=diff)


if __name__ == "__main__":
    main()
