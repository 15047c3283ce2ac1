"""What the shim writes: whole, or not at all. Floor 12."""

from __future__ import annotations

import os

from grami_actors.jobs.shim.lean import dumps

TYPE_CHECKING = False  # importing typing takes a tenth of the shim's start
if TYPE_CHECKING:
    from typing import Any


def encoded(value: Any) -> bytes:
    """A value as JSON. Raises ValueError for what is none: NaN, halves of characters, nesting without end."""
    try:
        return dumps(value).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


def sync_folder(path: str) -> None:
    """Have the names in a folder on the disk. Raises OSError."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_all(fd: int, data: bytes) -> None:
    """Write everything. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def write(path: str, data: bytes) -> None:
    """Put a file in its place, durably. Raises OSError; then what was there before is there still."""
    fresh = f"{path}.tmp"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(fresh, path)
    sync_folder(os.path.dirname(path))


def create(path: str, data: bytes) -> bool:
    """Make a durable file that is not there yet; says whether it was not. Raises OSError; then it is not there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    try:
        write_all(fd, data)
        sync_folder(os.path.dirname(path))
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    return True
