"""Connections to the agent's port, one after the other, while its process is replaced: until systemd says that another one serves, and for some more."""

import collections
import socket
import subprocess
import sys

UNIT = "pvelet-agent.service"


def replaced(before):
    """Whether another process than `before` has said that it serves."""
    show = ["systemctl", "show", "--property=MainPID,ActiveState", UNIT]
    now = dict(line.split("=", 1) for line in subprocess.check_output(show, text=True).splitlines())
    return now["ActiveState"] == "active" and now["MainPID"] not in ("0", before)


def main(port, before, command):
    ended, after = collections.Counter(), 0
    subprocess.check_call(command)
    while after < 20:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=60).close()
            ended["connected"] += 1
        except OSError as error:
            ended[type(error).__name__] += 1
        after += replaced(before)
    print(" ".join(f"{how}={count}" for how, count in sorted(ended.items())))


main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
