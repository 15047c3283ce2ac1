"""Autobahn|Testsuite, the WebSocket protocol's own fuzzing client, against our listener and against the bare library.

It needs CPython 2.7, for which it is installed into a folder of its own::

    python -m tests.autobahn.suite --install         # into .ci/autobahn; says why, if it cannot be
    python -m tests.autobahn.suite                   # all but the very long cases, as a table
    python -m tests.autobahn.suite --pin             # and keep what the bare library does as what is expected
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

VERSION = "25.10.1"
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".ci" / "autobahn"
EXPECTED = Path(__file__).with_name("expected.json")

QUICK = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
"""Eleven seconds: framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, and one large message."""

LONG = (*QUICK, "9.*")
"""Two minutes more for large messages. 12 and 13 are of compression, which is off here."""

PASSED = {"OK", "INFORMATIONAL", "NON-STRICT"}
"""What is no failure. Whether a case is strict depends on how its bytes fall into packets, on both servers."""

# Zope's packages are one namespace, put together by a .pth file, which only a site directory reads.
_START = f"""
import site, sys
site.addsitedir({str(FOLDER)!r})
sys.argv[0] = "wstest"
from autobahntestsuite.wstest import run
run()
"""

Outcomes = dict[str, str]
"""What came of each case: how it behaved, and how it closed."""


def python27() -> str | Path | None:
    """A CPython 2.7, from the path or from pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (shutil.which("python2.7"), *sorted(root.glob("versions/2.7*/bin/python2.7"))):
        # A version manager's python2.7 may stand in the path and yet not run.
        if candidate and not subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode:
            return candidate
    return None


def missing() -> str:
    """Why the suite cannot run; empty if it can."""
    if python27() is None:
        return "Autobahn|Testsuite needs CPython 2.7: put python2.7 into the PATH, or install it with pyenv"
    if not (FOLDER / "autobahntestsuite").is_dir():
        return "Autobahn|Testsuite is not installed: python -m tests.autobahn.suite --install"
    return ""


def install() -> str:
    """Install the suite, unless it is there; why it could not be, or nothing."""
    python = python27()
    if python is not None and missing():
        command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(FOLDER)]
        try:
            subprocess.run(
                [*command, f"autobahntestsuite=={VERSION}"], capture_output=True, text=True, check=True, timeout=300
            )
        except subprocess.CalledProcessError as failed:
            return f"Autobahn|Testsuite could not be installed: {failed.stderr.strip()[-300:]}"
        except subprocess.TimeoutExpired:
            return "Autobahn|Testsuite could not be installed in five minutes"
    return missing()


@contextlib.contextmanager
def server(which: str) -> Iterator[str]:
    """An echo server of :mod:`tests.autobahn.echo`, and its address."""
    command = [sys.executable, "-m", "tests.autobahn.echo", which]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def outcomes(which: str, cases: Sequence[str], folder: Path) -> Outcomes:
    """Run cases against a server; the reports go to the folder."""
    python = python27()
    assert python is not None
    with server(which) as url:
        spec = folder / f"{which}.json"
        spec.write_text(
            json.dumps({"outdir": str(folder), "servers": [{"agent": which, "url": url}], "cases": list(cases)})
        )
        command = [python, "-c", _START, "-m", "fuzzingclient", "-s", str(spec)]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"the fuzzing client failed: {ran.stderr or ran.stdout}")
    report = json.loads((folder / "index.json").read_text())[which]
    return {case: f"{each['behavior']} / {each['behaviorClose']}" for case, each in report.items()}


def expected() -> Outcomes:
    """What the bare library does, as it was pinned."""
    return json.loads(EXPECTED.read_text())


def worse(one: Outcomes, other: Outcomes) -> list[str]:
    """The cases in which one fails and the other does not, or which it did not run."""
    return [
        f"{case}: {one.get(case, 'not run')} instead of {outcome}"
        for case, outcome in sorted(other.items(), key=lambda item: _order(item[0]))
        if case not in one or (_passed(outcome) and not _passed(one[case]))
    ]


def _passed(outcome: str) -> bool:
    return set(outcome.split(" / ")) <= PASSED


def _order(case: str) -> tuple[int, ...]:
    return tuple(int(part) for part in case.split("."))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install the suite, and no more")
    parser.add_argument("--quick", action="store_true", help=f"only the cases {' '.join(QUICK)}")
    parser.add_argument("--pin", action="store_true", help=f"write {EXPECTED.name} from what the bare library does")
    given = parser.parse_args()
    reason = install()
    if reason or given.install:
        say(reason or f"Autobahn|Testsuite {VERSION} is installed")
        return 1 if reason else 0
    folder = FOLDER / "reports"
    cases = QUICK if given.quick else LONG
    seen = {}
    for which in ("bare", "ours"):
        shutil.rmtree(folder / which, ignore_errors=True)
        (folder / which).mkdir(parents=True)
        seen[which] = outcomes(which, cases, folder / which)
    bare, ours = seen["bare"], seen["ours"]
    say(f"{'case':10} {'bare websockets':32} {'ours':32}")
    for case in sorted(bare, key=_order):
        if bare[case] != "OK / OK" or ours.get(case) != "OK / OK":
            say(f"{case:10} {bare[case]:32} {ours.get(case, 'not run'):32}")
    for name, each in seen.items():
        say(f"{name}: {len(each)} cases, {dict(Counter(each.values()).most_common())}; {folder / name}/index.html")
    if given.pin:
        EXPECTED.write_text(json.dumps(dict(sorted(bare.items(), key=lambda item: _order(item[0]))), indent=0) + "\n")
    found = worse(ours, bare)
    say("\n".join(("worse than the bare library:", *found)) if found else "no case is worse than the bare library")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
