"""The worker's end of the pipe, and the errands that it waits for. Floor 9."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable
from typing import Any

from grami_actors.errors import GramiError
from grami_actors.future import Future, Stream
from grami_actors.lanes.codec import Codec, Find
from grami_actors.lanes.pipe import Chunk, Do, Forget, Frame, Frames, Reply


class Channel:
    """The worker's end of the pipe; any thread may send.

    Args:
        connection: the socket.
        find: what a name means here.
        refer: makes a ref.
    """

    def __init__(self, connection: socket.socket, find: Find, refer: Callable[[str, int], Any]) -> None:
        self._socket = connection
        self.codec = Codec(find, refer, trusting=True)
        self._frames = Frames(self.codec, "orders")
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}

    def send(self, frame: Frame) -> None:
        """Send a frame. Raises CannotCross."""
        data = self._frames.write(frame)
        with self._lock:
            self._socket.sendall(data)

    def receive(self) -> list[Any] | None:
        """The next frames; ``None`` at the end of the pipe."""
        data = self._socket.recv(1 << 20)
        return list(self._frames.feed(data)) if data else None

    # --- errands ---

    def expect(self, future: Future[Any]) -> int:
        """The number of an errand whose result this future is."""
        errand = next(self._numbers)
        self._waiting[errand] = future
        future.errand = errand  # type: ignore[attr-defined]
        return errand

    def number(self) -> int:
        """A number for an errand without a result."""
        return next(self._numbers)

    def do(self, number: int, what: str, *arguments: Any) -> Future[Any]:
        """Have the parent do something; the future of the result. Raises CannotCross."""
        future: Future[Any] = Future()
        packed = [self.codec.pack(each) for each in arguments]
        errand = self.expect(future)
        self.send(Do(number, errand, what, packed))
        return future

    def settle(self, reply: Reply) -> None:
        """An errand came to its end."""
        future = self._waiting.pop(reply.errand, None)
        if future is None:
            return
        try:
            value = self.codec.read(reply.value)
        except GramiError as unreadable:
            future.fail(unreadable)
            return
        if reply.ok:
            future.set_result(value)
        else:
            future.fail(value)

    def chunk(self, chunk: Chunk) -> None:
        """A chunk of a stream came."""
        future = self._waiting.get(chunk.errand)
        if isinstance(future, Stream):
            try:
                future.emit(self.codec.read(chunk.data))
            except GramiError as refused:
                future.cancel(refused)

    def forget(self, future: Any) -> None:
        """Wait no more for an errand."""
        if self._waiting.pop(future.errand, None) is not None:
            self.send(Forget(future.errand))
