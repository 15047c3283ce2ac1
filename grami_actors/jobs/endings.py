"""How an attempt ended, from what its shim left in its folder. Floor 12."""

from __future__ import annotations

import signal
from typing import Any

import msgspec

from grami_actors.errors import ErrorCode
from grami_actors.job import Exit, Reason
from grami_actors.jobs.folder import AttemptFolder
from grami_actors.jobs.runner import Outcome


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str
    permanent: bool = False


class _Ending(Exit, frozen=True, kw_only=True):
    """exit.json."""

    at: float
    reason: Reason = ""
    error: _Error | None = None
    unstarted: bool = False

    @property
    def exit(self) -> Exit:
        return Exit(**{name: getattr(self, name) for name in Exit.__struct_fields__})


def outcome_of(folder: AttemptFolder, now: float) -> Outcome:
    """The outcome of an attempt with an exit.json.

    An attempt that was told to end before it had succeeded was ended, whatever it returned then.
    """
    try:
        ending = msgspec.convert(folder.read("exit.json"), _Ending)
    except msgspec.ValidationError as error:
        return Outcome(kind="lost", at=now, message=f"its exit.json is damaged: {error}")
    at, done, fault = ending.at, ending.exit, ending.error
    if ending.unstarted:
        failed = fault or _Error(ErrorCode.INTERNAL_ERROR, "it could not be started")
        return unstarted(at, failed.code, failed.message, permanent=failed.permanent)
    if ending.reason:
        return Outcome(kind="stopped", at=at, reason=ending.reason, exit=done, message=_ended_by(ending))
    if fault is None:
        try:
            return Outcome(kind="succeeded", at=at, result=folder.result(), exit=done)
        except ValueError as damage:
            fault = _Error(ErrorCode.INTERNAL_ERROR, str(damage))
    return Outcome(kind="failed", at=at, code=fault.code, message=fault.message, permanent=fault.permanent, exit=done)


def lost(now: float, *, rebooted: bool, copied: bool) -> Outcome:
    """Its shim ended without a word, or runs for another server, whose state directory was copied."""
    why = "the machine was restarted" if rebooted else "its shim was killed"
    if copied:
        why = "its folder was copied"
    return Outcome(kind="lost", at=now, message=f"{why} while it ran")


def unstarted(at: float, code: str, message: str, *, permanent: bool = False) -> Outcome:
    """None of its code ran."""
    return Outcome(kind="unstarted", at=at, code=code, message=message, permanent=permanent)


def _ended_by(ending: _Ending) -> str:
    if ending.signal is None:
        return f"it ended with exit code {ending.code}"
    try:
        name: Any = signal.Signals(ending.signal).name
    except ValueError:
        name = f"signal {ending.signal}"
    return f"it was ended by {name}"
