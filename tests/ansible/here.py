"""Ansible on this machine in the place of hosts: the collection as it lies in the repository, and scripts in the place of programs."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).parents[2]
FATAL = re.compile(r"^fatal: \[([^\] ]+)(?: -> [^\]]+)?\]: (?:FAILED|UNREACHABLE)! => (.*)$", re.MULTILINE)


class Here:
    """A folder with a collection, programs and an inventory; to be used as a context."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="pvelet-ansible.")
        self.path = pathlib.Path(self.folder.name)
        tree = self.path / "collections" / "ansible_collections" / "pvelet"
        tree.mkdir(parents=True)
        (tree / "pvelet").symlink_to(REPOSITORY / "ansible")
        self.programs = self.path / "bin"
        self.programs.mkdir()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def program(self, name: str, script: str) -> str:
        """A script in the place of a program; its path."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    def write(self, name: str, content) -> str:
        """A file, as JSON where it is no text; its path."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    def read(self, name: str) -> str:
        """The text of a file, nothing where there is none."""
        path = self.path / name
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def run(self, play, hosts: dict, more: dict | None = None, groups: dict | None = None, arguments: tuple = ()) -> "Done":
        """Runs a playbook: one of the collection's by its name, or plays. Each host is this machine, with the variables that are given."""
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        rows = {name: {**local, **variables} for name, variables in hosts.items()}
        inventory = {"pvelet": {"hosts": rows}} | {group: {"hosts": {name: {} for name in names}} for group, names in (groups or {}).items()}
        command = ["ansible-playbook", "--forks", "10", "--inventory", self.write("inventory.json", inventory)]
        command += ["--extra-vars", json.dumps(more or {}), *arguments, play if isinstance(play, str) else self.write("play.json", play)]
        done = subprocess.run(
            command,
            cwd=self.path,
            env={
                **os.environ,
                "PATH": f"{self.programs}:{os.environ['PATH']}",
                "ANSIBLE_COLLECTIONS_PATH": str(self.path / "collections"),
                "ANSIBLE_HOME": str(self.path / "home"),
                "ANSIBLE_LOCAL_TEMP": str(self.path / "home" / "tmp"),
                "ANSIBLE_REMOTE_TEMP": str(self.path / "remote"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_INVENTORY_UNPARSED_WARNING": "false",
                "ANSIBLE_SSH_ARGS": "-F none",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        return Done(done.returncode, done.stdout + done.stderr)


class Done:
    """How a run has ended."""

    def __init__(self, status: int, text: str) -> None:
        self.good, self.text = status == 0, text

    def failure(self, host: str) -> str:
        """What a host has failed with: the message that a person reads, or all where it has none."""
        for name, told in FATAL.findall(self.text):
            if name == host:
                message = json.loads(told).get("msg", told)
                return message if isinstance(message, str) else "; ".join(message)
        return ""

    def changed(self, host: str) -> int:
        """The tasks that changed something on a host."""
        found = re.search(rf"^{re.escape(host)} +: .*changed=(\d+)", self.text, re.MULTILINE)
        return int(found.group(1)) if found else -1


def role(tasks: str, **more) -> dict:
    """A task that has tasks of the role done."""
    return {"ansible.builtin.include_role": {"name": "pvelet.pvelet.pvelet_agent", "tasks_from": tasks}, **more}


def play(*tasks: dict, **keywords) -> list[dict]:
    """One play on all hosts."""
    return [{"hosts": "all", "gather_facts": False, "tasks": list(tasks), **keywords}]
