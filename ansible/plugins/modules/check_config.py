#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Asks a pvelet-agent that may not be installed yet what it thinks of a configuration."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check_config
short_description: Check a configuration of pvelet-agent before anything is installed
description:
  - Has C(pvelet-agent check-config) judge a configuration, by the program in a package that is not installed yet, or by the installed one.
  - Certificates are left out. Everything is made in a temporary folder that is removed again, so it is done in check mode too.
options:
  content:
    description: The configuration.
    type: str
    required: true
  package:
    description: A .deb file on the host, whose program is asked. Without one it is the installed program.
    type: path
  program:
    description: The installed program, which is asked where no package is given.
    type: path
    default: /usr/bin/pvelet-agent
author:
  - pvelet authors
attributes:
  check_mode:
    support: full
"""

EXAMPLES = r"""
- name: Check the configuration with the program that is about to be installed
  pvelet.pvelet.check_config:
    content: "{{ text }}"
    package: /root/pvelet-agent.deb
"""

RETURN = r"""
mistakes:
  description: What the program said, a line each. Empty when all is good.
  type: list
  returned: always
version:
  description: The version of the package that was asked, null for the installed program.
  type: str
  returned: always
"""

import os
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule


def run(arguments: list[str], **more) -> subprocess.CompletedProcess:
    """A program that must not hang."""
    return subprocess.run(arguments, capture_output=True, timeout=60, check=False, **more)


def program_of(package: str, folder: str) -> str:
    """Takes the agent's program out of a package."""
    archive = os.path.join(folder, "data.tar")
    with open(archive, "wb") as file:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=file, stderr=subprocess.PIPE, timeout=60, check=True)
    subprocess.run(["tar", "-xf", archive, "-C", folder, "./usr/bin/pvelet-agent"], capture_output=True, timeout=60, check=True)
    return os.path.join(folder, "usr/bin/pvelet-agent")


def field(package: str, name: str) -> str:
    """A field of a package."""
    return run(["dpkg-deb", "--field", package, name], text=True).stdout.strip()


def main() -> None:
    """The module."""
    options = {"content": {"type": "str", "required": True}, "package": {"type": "path"}, "program": {"type": "path", "default": "/usr/bin/pvelet-agent"}}
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    package, version = module.params["package"], None
    # Where programs may be run, other than /tmp on many hosts.
    with tempfile.TemporaryDirectory(prefix="pvelet-check.", dir="/var/tmp") as folder:
        try:
            program = module.params["program"]
            if package:
                name = field(package, "Package")
                if name != "pvelet-agent":
                    module.fail_json(msg=f"{package}: is no package pvelet-agent but '{name}'; set pvelet_agent_package to the right file")
                version = field(package, "Version")
                program = program_of(package, folder)
            file = os.path.join(folder, "agent.toml")
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as out:
                out.write(module.params["content"])
            done = run([program, "check-config", "--no-certificates", file], text=True)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or b"").decode(errors="replace").strip()
            module.fail_json(msg=f"{package}: cannot be unpacked ({said}); is it whole, and built for this host?")
        except (OSError, subprocess.TimeoutExpired) as error:
            module.fail_json(msg=f"pvelet-agent check-config cannot be run: {error}")
    said = [line for line in done.stderr.replace(file, "agent.toml").splitlines() if line.strip()]
    if done.returncode == 0:
        for warning in said:
            module.warn(warning)
    module.exit_json(changed=False, mistakes=said if done.returncode else [], version=version)


if __name__ == "__main__":
    main()
