#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Hands certificates to `pvelet-agent install-certificate`, which checks them and puts all or nothing in place."""

from __future__ import annotations

DOCUMENTATION = r"""
module: install_certificate
short_description: Put a host's certificate, its clients' CAs and revocation lists in place
description:
  - Has C(pvelet-agent install-certificate) check all that is given and put it in place, all or nothing. A running agent takes it over by itself.
  - A list that is older than the present one is refused, as is whatever the agent could not start with.
options:
  certificate:
    description: The host's certificate, PEM. Its key is on the host already.
    type: str
  ca:
    description: The CAs whose clients are heard, PEM.
    type: str
  crl:
    description: Their revocation lists, PEM.
    type: str
  folder:
    description: Where CAs and lists lie, for check mode and diff.
    type: path
    default: /etc/pvelet/tls
  program:
    description: The program of the agent.
    type: path
    default: /usr/bin/pvelet-agent
author:
  - pvelet authors
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: Bring a revocation list
  pvelet.pvelet.install_certificate:
    crl: "{{ lookup('ansible.builtin.file', 'pki/ca.crl') }}"
"""

RETURN = r"""
replaced:
  description: Whether the certificate is another one than before.
  type: bool
  returned: always
said:
  description: What pvelet-agent said, one line.
  type: str
  returned: when it was asked
"""

import os
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule


def present(path: str) -> str:
    """The text of a file, empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 22)
    except OSError:
        return ""


def main() -> None:
    """The module."""
    options = {
        "certificate": {"type": "str"},
        "ca": {"type": "str"},
        "crl": {"type": "str"},
        "folder": {"type": "path", "default": "/etc/pvelet/tls"},
        "program": {"type": "path", "default": "/usr/bin/pvelet-agent"},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True, required_one_of=[["certificate", "ca", "crl"]])
    names = {"certificate": "agent.crt", "ca": "ca.crt", "crl": "ca.crl"}
    given = {key: module.params[key].strip() + "\n" for key in names if module.params[key]}
    before = {key: present(os.path.join(module.params["folder"], names[key])) for key in given}
    differs = [key for key, text in given.items() if before[key].split() != text.split()]
    diff = [
        {"before": before[key], "after": given[key], "before_header": names[key], "after_header": names[key]}
        for key in differs
    ]
    if not differs or module.check_mode:
        module.exit_json(changed=bool(differs), replaced="certificate" in differs, diff=diff)
    with tempfile.TemporaryDirectory(prefix="pvelet-") as folder:
        arguments = [module.params["program"], "install-certificate"]
        for key, text in given.items():
            path = os.path.join(folder, names[key])
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            arguments += [path] if key == "certificate" else [f"--{key}", path]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            module.fail_json(msg=f"pvelet-agent install-certificate cannot be run: {error}")
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().replace(f"{folder}/", "")
    if done.returncode:
        module.fail_json(msg=said)
    module.exit_json(changed=not said.startswith("unchanged"), said=said, replaced="certificate" in differs, diff=diff)


if __name__ == "__main__":
    main()
