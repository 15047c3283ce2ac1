"""The blackboard: what several agents know together, changed by compare-and-set, and watched. Floor 12.

Rule 1: one actor holds the board and handles one message at a time, so reads and writes are linearizable
        (M. Herlihy, J. Wing, "Linearizability", ACM TOPLAS 12 (3), 1990).
Rule 2: a version is the number of the change that made it. Numbers grow with every change of the board, deletions too,
        and never come twice: who compares versions never mistakes a new value for an old one.
Rule 3: a change is published after it was made, in the order of versions, to the topic ``BOARD.KEY``. So agents and
        clients watch with what they have: ``subscribes=("blackboard.orders.>",)`` hears :class:`EntryChanged` of all
        keys below ``orders``. A watcher that stops is forgotten. Who was away, or had a full mailbox, lists again.
Rule 4: the board keeps its values, not references to them: what is read is a copy, made by JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from grami_actors.actor import Actor
from grami_actors.agent import Agent, handles
from grami_actors.coordination.journal import Journal
from grami_actors.coordination.news import tell_topic
from grami_actors.coordination.retries import latest
from grami_actors.errors import ErrorCode, ProtocolError
from grami_actors.messages import Message

MOST_KEYS = 100_000
"""Keys of one board; one more is RESOURCE_EXHAUSTED."""

LONGEST_KEY = 512
"""Characters of a key."""

_KEY = re.compile(r"(?:[^\s.*>]+\.)*[^\s.*>]+")


class ReadEntry(Message, tag="board.read"):
    """What stands under a key? Answered with an :class:`Entry`."""

    key: str


class WriteEntry(Message, tag="board.write"):
    """Set a key. Answered with :class:`Written`.

    Attributes:
        key: words with dots between them, as in ``orders.42.state``.
        value: anything that JSON can say.
        expected: the version that the key must have now, 0 if there must be none; ``None`` writes in any case.
    """

    key: str
    value: Any
    expected: int | None = None


class DeleteEntry(Message, tag="board.delete"):
    """Remove a key, as :class:`WriteEntry` sets it."""

    key: str
    expected: int | None = None


class ListEntries(Message, tag="board.list"):
    """All entries whose keys begin with ``prefix``, in the order of versions. Answered with a list of Entry."""

    prefix: str = ""


class EntryChanged(Message, tag="board.changed"):
    """Published to the topic ``BOARD.KEY``: the entry is now this one; version 0 if it was deleted.

    Attributes:
        key: the key.
        version: its version; 0 if it was deleted.
        value: its value.
        change: the number of the change, which grows, for deletions too.
    """

    key: str
    version: int
    value: Any
    change: int


class Entry(msgspec.Struct, frozen=True):
    """A key with its version and value; version 0 and ``None`` if nothing stands there."""

    key: str
    version: int = 0
    value: Any = None


class Written(msgspec.Struct, frozen=True):
    """Whether it was written. ``entry`` is what stands there now: one's own, or what one has not expected."""

    done: bool
    entry: Entry


class Blackboard(Agent):
    """Holds what several agents know together: ``partial(Blackboard, Journal("board.jsonl"))`` in a swarm's agents.

    Args:
        journal: holds the entries. The instance that takes over after a failure finds them there; with a file the
            next process does. Subscriptions are the system's, and survive a failure too.

    With a file each change waits for the disk, and the board with it: some hundred changes a second.
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self._journal = journal

    def on_start(self) -> None:
        """Read the journal. Raises ConfigError."""
        self._journal.open(self._cell.runtime, self.name)

    def on_stop(self) -> None:
        """Let go of it."""
        self._journal.close()

    @handles(ReadEntry)
    async def _on_read(self, read: ReadEntry) -> Entry:
        entry = self._entry(read.key)
        await self._journal.kept()  # a writer that was cancelled may have left it behind
        return entry

    @handles(ListEntries)
    async def _on_list(self, asked: ListEntries) -> list[Entry]:
        entries = [self._entry(key) for key in self._journal.keys() if key.startswith(asked.prefix)]  # noqa: SIM118 - no dict
        await self._journal.kept()
        return entries

    @handles(WriteEntry)
    async def _on_write(self, write: WriteEntry) -> Written:
        if len(write.key) > LONGEST_KEY or _KEY.fullmatch(write.key) is None:
            raise ProtocolError(
                f"a key has words with dots between them, as in orders.42, without spaces, * and >, and at most "
                f"{LONGEST_KEY} characters",
                code=ErrorCode.VALIDATION_FAILED,
                param="$.key",
            )
        version = self._journal.version(write.key)
        done = write.expected in {None, version}
        if done:
            if not version:
                self._journal.make_room(MOST_KEYS, "keys, as many as a board may have: delete one")
            self._tell(write.key, self._journal.put(write.key, write.value))
        return await self._written(write.key, done=done)

    @handles(DeleteEntry)
    async def _on_delete(self, delete: DeleteEntry) -> Written:
        version = self._journal.version(delete.key)
        done = delete.expected in {None, version}
        if done and version:
            self._tell(delete.key, self._journal.remove(delete.key))
        return await self._written(delete.key, done=done)

    def _entry(self, key: str) -> Entry:
        return Entry(key, self._journal.version(key), self._journal.get(key))

    def _tell(self, key: str, change: int) -> None:
        entry = self._entry(key)
        news = EntryChanged(key, entry.version, entry.value, change)
        # Also if the writer is cancelled meanwhile: watchers miss no change that was made.
        self._journal.once_kept(partial(tell_topic, self, f"{self.name}.{key}", news))

    async def _written(self, key: str, *, done: bool) -> Written:
        entry = self._entry(key)
        await self._journal.kept()
        return Written(done=done, entry=entry)


async def update(
    by: Actor, board: str, key: str, function: Callable[[Any], Any], *, timeout: float | None = None
) -> Entry:
    """Replace a value by a function of it, whoever else does so at the same time.

    ::

        await update(self, "blackboard", "hits", lambda hits: (hits or 0) + 1)

    Args:
        by: the actor that does it.
        board: the name of the blackboard.
        key: the key.
        function: makes the new value of the old one, which is ``None`` if there is none. It is called again for each
            time that another was faster, so it should have no other effect.
        timeout: seconds at most, of what the request still has; 30 outside of any.

    Returns:
        the entry as it was written.

    Raises:
        DeadlineExceeded, AgentCrashed: whether it was written is unknown, so it is not tried again.
        GramiError: what else an ask raises; nothing was written.
    """
    until = latest(by, timeout)
    entry: Entry = await by.ask(board, ReadEntry(key), timeout=until - by._cell.now())
    while True:
        write = WriteEntry(key, function(entry.value), entry.version)
        written: Written = await by.ask(board, write, timeout=until - by._cell.now())
        if written.done:
            return written.entry
        entry = written.entry
