"""What the servers serve that are killed: tools and commands that write down themselves when they start and end.

Each appends ``start JOB ATTEMPT PID STARTTIME`` and ``end JOB ATTEMPT PID HOW`` to a file of its own test's, by one
write each: what the server, the shim and the store say is compared with that. Then it prints ``lines`` lines, waits for
the file ``gate`` if it is given one, and ends with an exit code or by the signal ``how``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

from grami_actors import Swarm, tool
from grami_actors.jobs import JobContext, Retry, command

_TELL = """
witness=$1
read -r stat </proc/$$/stat
tell() { printf '%s %s %s %s %s\\n' "$1" "$GRAMI_JOB_ID" "$GRAMI_JOB_ATTEMPT" $$ "$2" >>"$witness"; }
tell start "$(echo $stat | cut -d ' ' -f 22)"
"""

_TASK = (
    _TELL
    + """
name=$2 lines=$3 how=$4 gate=$5 pause=$6 number=0
while [ $number -lt $lines ]; do
    echo "$name $number"
    number=$((number + 1))
    [ $pause = 0 ] || sleep $pause
done
while [ $gate != no ] && [ ! -e $gate ]; do sleep 0.02; done
tell end $how
case $how in
    [0-9]*) exit $how ;;
    *) kill -$how $$ ;;
esac
"""
)

_STUBBORN = (
    "trap 'tell term 0' TERM"
    + _TELL
    + """
while :; do sleep 0.05; done
"""
)

_PARAMETERS = {
    "witness": str,
    "name": (str, "line"),
    "lines": (int, 0),
    "how": (str, "0"),
    "gate": (str, "no"),
    "pause": (float, 0),
}
_ARGV = ["sh", "-c", _TASK.replace("{", "{{").replace("}", "}}"), "task", *(f"{{{name}}}" for name in _PARAMETERS)]
_TWICE = Retry(attempts=2, delay=0.05)


def _task(
    witness: str, name: str = "line", lines: int = 0, how: str = "0", gate: str = "no", pause: float = 0.0
) -> str:
    _began(witness)
    for number in range(lines):
        os.write(1, f"{name} {number}\n".encode())
        time.sleep(pause)
    while gate != "no" and not Path(gate).exists():
        time.sleep(0.02)
    _tell(witness, "end", how)
    if how == "raise":
        raise ValueError("as it was told to")
    if how == "SEGV":
        ctypes.string_at(0)
    if not how.isdecimal():
        os.kill(os.getpid(), signal.Signals[f"SIG{how}"])
    if how != "0":
        os._exit(int(how))
    return name


def _began(witness: str) -> None:
    _tell(witness, "start", Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def _tell(witness: str, what: str, more: str) -> None:
    line = f"{what} {os.environ['GRAMI_JOB_ID']} {os.environ['GRAMI_JOB_ATTEMPT']} {os.getpid()} {more}\n"
    descriptor = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


@tool(job=True)
def work(witness: str, name: str = "line", lines: int = 0, how: str = "0", gate: str = "no", pause: float = 0.0) -> str:
    """As ``task``, in Python."""
    return _task(witness, name, lines, how, gate, pause)


@tool(job=True, effect="idempotent", retry=_TWICE)
def work_again(
    witness: str, name: str = "line", lines: int = 0, how: str = "0", gate: str = "no", pause: float = 0.0
) -> str:
    """As ``work``, and may be repeated."""
    return _task(witness, name, lines, how, gate, pause)


@tool(job=True)
def say(witness: str, ctx: JobContext, name: str = "line", lines: int = 0, pause: float = 0.0) -> int:
    """Tells of each line, too, as the artifact ``NUMBER.txt``: an event that must come once."""
    _began(witness)
    for number in range(lines):
        os.write(1, f"{name} {number}\n".encode())
        ctx.artifact(f"{number}.txt", str(number))
        time.sleep(pause)
    _tell(witness, "end", "0")
    return lines


swarm = Swarm(
    [],
    [
        command("task", _ARGV, parameters=_PARAMETERS, soft_grace=0.1),
        command("task_again", _ARGV, parameters=_PARAMETERS, effect="idempotent", retry=_TWICE),
        command("mortal", _ARGV, parameters=_PARAMETERS, on_server_exit="stop", soft_grace=0, term_grace=0.5),
        command(
            "stubborn",
            ["sh", "-c", _STUBBORN.replace("{", "{{").replace("}", "}}"), "stubborn", "{witness}"],
            parameters={"witness": str},
            soft_grace=0.05,
            term_grace=1.0,
        ),
        work,
        work_again,
        say,
    ],
)
