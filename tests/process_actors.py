"""Actors and tools for the process lane: at the top of a module that a worker process imports quickly."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from grami_actors.actor import Actor, charge
from grami_actors.agent import Agent, handles
from grami_actors.errors import Cancelled, GramiError
from grami_actors.future import current_scope
from grami_actors.messages import Message, Terminated
from grami_actors.restarts import RestartPolicy
from grami_actors.tools import lazy_tool, tool

AT_ONCE = RestartPolicy(intensity=100, shortest=0.0, longest=0.0)


class Point(msgspec.Struct, frozen=True):
    x: int
    label: str = ""


class Own(Exception):
    """An exception whose constructor must not run in the parent."""

    made_by: ClassVar[list[int]] = []

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.made_by.append(os.getpid())


class Log(Actor):
    """Keeps what it gets; answers with it all on "read"."""

    lane = "process"
    restart = AT_ONCE

    def __init__(self, *first: Any) -> None:
        super().__init__()
        self.seen: list[Any] = [str(each) if isinstance(each, Path) else each for each in first]

    def on_receive(self, message: Any) -> Any:
        if message == "read":
            return self.seen
        if message == "pid":
            return os.getpid()
        if isinstance(message, BaseException):
            raise message
        self.seen.append(message)
        return message


class AsyncLog(Log):
    async def on_receive(self, message: Any) -> Any:
        await asyncio.sleep(0)
        return super().on_receive(message)


class Small(Log):
    mailbox = 3

    async def on_receive(self, message: Any) -> Any:
        if message == "hold":
            return await self.ask("gate", message)
        return super().on_receive(message)


class DropOldest(Small):
    overflow = "drop_oldest"


class DropNewest(Small):
    overflow = "drop_newest"


class Waiting(Small):
    mailbox = 2
    overflow = "wait"


class Twice(Log):
    restart = RestartPolicy(intensity=2, shortest=0.0, longest=0.0)


class Held(Actor):
    """Handles "hold" until the actor "gate" answers, everything else at once. Says "noticed" when it is cancelled."""

    lane = "process"
    restart = AT_ONCE

    async def on_receive(self, message: Any) -> Any:
        if message == "hold":
            try:
                return await self.ask("gate", message)
            except (asyncio.CancelledError, Cancelled):
                self.tell("gate", "noticed", detached=True)
                raise
        return message

    async def on_stop(self) -> None:
        await asyncio.sleep(0)
        self.tell("gate", "on_stop")


class HeldPlain(Actor):
    """The same with a plain handler, which looks for itself."""

    lane = "process"
    restart = AT_ONCE

    def on_receive(self, message: Any) -> Any:
        if message != "hold":
            return message
        self.tell("gate", "holding", detached=True)
        while not self.cancelled:
            time.sleep(0.001)
        self.tell("gate", "noticed", detached=True)
        return "too late"


class BegunTooLate(HeldPlain):
    """Returns a coroutine that waits for nothing, when it is cancelled already."""

    def on_receive(self, message: Any) -> Any:
        answer = super().on_receive(message)
        return answer if message != "hold" else self._answer(answer)

    async def _answer(self, answer: Any) -> Any:
        return answer


class Stubborn(Held):
    async def on_receive(self, message: Any) -> Any:
        try:
            return await super().on_receive(message)
        except (asyncio.CancelledError, Cancelled):
            return "too late"


class Middle(Actor):
    """Asks another and answers its answer."""

    lane = "process"

    def __init__(self, following: str = "log") -> None:
        super().__init__()
        self.following = following

    async def on_receive(self, message: Any) -> Any:
        return await self.ask(self.following, message)


class MiddlePlain(Middle):
    def on_receive(self, message: Any) -> Any:
        return self.ask(self.following, message).get()


class Narcissus(Actor):
    lane = "process"

    async def on_receive(self, message: Any) -> Any:
        return await self.ask(self._cell.ref, "me")


class Answerer(Actor):
    """Asks back who asks it."""

    lane = "process"

    async def on_receive(self, message: Any) -> Any:
        return await self.ask("caller", "who")


class Caller(Log):
    """Asks without waiting for the answer."""

    def on_receive(self, message: Any) -> Any:
        if message == "go":
            self.later = self.ask("answerer", "?")
            return "went"
        return super().on_receive(message)


class Deadline(Actor):
    lane = "process"

    def on_receive(self, message: Any) -> Any:
        scope = current_scope()
        return None if scope is None else (scope.deadline, scope.trace_id, scope.depth)


class Deadlines(Actor):
    lane = "process"

    async def on_receive(self, message: Any) -> Any:
        return [(await self.ask("inner", "?", timeout=timeout))[0] for timeout in (None, 1_000.0, 0.5)]


class Broken(Actor):
    """Cannot start."""

    lane = "process"

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_start(self) -> None:
        raise self.error


class Slow(Log):
    async def on_start(self) -> None:
        await asyncio.sleep(0)
        self.seen.append(await self.ask("gate", "starting"))


class Careful(Log):
    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.tell("gate", (self.seen, exception_type.__name__, str(exception_value), traceback is not None))


class Watcher(Log):
    """Watches whom it is told to."""

    def on_receive(self, message: Any) -> Any:
        if isinstance(message, tuple):
            getattr(self, message[0])(message[1])
            return None
        return super().on_receive(message)

    def on_terminated(self, terminated: Terminated) -> None:
        self.seen.append((terminated.name, terminated.reason))
        self.tell("gate", terminated.name)


class Quitter(Actor):
    lane = "process"

    def on_receive(self, message: Any) -> Any:
        self.stop()
        return "bye"


class Wide(Actor):
    lane = "process"
    concurrency = 2
    restart = AT_ONCE

    async def on_receive(self, message: Any) -> Any:
        if isinstance(message, BaseException):
            raise message
        return (os.getpid(), await self.ask("gate", message)) if message == "hold" else os.getpid()


class Deadly(Actor):
    """Does what ends a process."""

    lane = "process"
    restart = AT_ONCE

    def on_receive(self, message: Any) -> Any:
        return os.getpid() if message == "pid" else getattr(self, message.replace(" ", "_"))()

    def exit(self) -> None:
        os._exit(3)

    def segv(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def hang(self) -> None:
        self.tell("gate", "hanging", detached=True)
        while True:
            pass

    def hang_in_C(self) -> None:  # noqa: N802
        """With the interpreter's lock held."""
        self.tell("gate", "hanging", detached=True)
        ctypes.PyDLL(None).sleep(60)

    def memory(self) -> int:
        return len(bytearray(3 * 1024**3))

    def eat(self) -> None:
        everything = []
        while True:
            everything.append(bytearray(64 * 1024**2))

    def garbage(self) -> None:
        self._cell.runtime.channel._socket.sendall(b"\xff" * 100)
        time.sleep(60)

    def lies(self) -> None:
        """Sends the answer to a message that it never got."""
        self._cell.runtime.channel._socket.sendall(b"\x00\x00\x00\x08\x93\xa4Done\x63\xc0")
        time.sleep(60)

    def child(self) -> int:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid

    def close(self) -> None:
        self._cell.runtime.channel._socket.shutdown(socket.SHUT_RDWR)
        time.sleep(60)


class Teller(Actor):
    """Does what it is asked by name, and answers with what came of it."""

    lane = "process"
    restart = AT_ONCE

    async def on_receive(self, message: Any) -> Any:
        what, *rest = message
        return await getattr(self, f"do_{what}")(*rest)

    async def do_environment(self) -> Any:
        return dict(os.environ)

    async def do_limits(self) -> Any:
        adjusted = await asyncio.to_thread(Path("/proc/self/oom_score_adj").read_text)
        return resource.getrlimit(resource.RLIMIT_DATA)[0], resource.getrlimit(resource.RLIMIT_CORE), adjusted

    async def do_echo(self, value: Any) -> Any:
        return value

    async def do_type(self, value: Any) -> Any:
        return type(value).__name__, repr(value)

    async def do_big(self, size: int) -> Any:
        return b"x" * size

    async def do_object(self) -> Any:
        return object()

    async def do_print(self) -> Any:
        sys.stdout.write("printed by a worker\n")
        sys.stdout.flush()

    async def do_tell(self, to: Any, message: Any) -> Any:
        self.tell(to, message)

    async def do_send(self, to: Any, count: int) -> Any:
        for number in range(count):
            await self.send(to, number)

    async def do_ref_tell(self, ref: Any, message: Any) -> Any:
        ref.tell(message)
        return ref.name, ref.is_alive(), ref

    async def do_publish(self, topic: str, message: Any) -> Any:
        return self.publish(topic, message)

    async def do_subscribe(self, topic: str) -> Any:
        self.subscribe(topic)

    async def do_unsubscribe(self, topic: str) -> Any:
        return self.unsubscribe(topic)

    async def do_spawn(self) -> Any:
        await self.spawn(Log)

    async def do_gate(self) -> Any:
        self.gate("api.example.com")

    async def do_observe(self) -> Any:
        self.observe()

    async def do_proxy(self, ref: Any) -> Any:
        ref.proxy()

    async def do_emit(self, count: int) -> Any:
        for number in range(count):
            self.emit((number, self.name))
            self.progress(number / count, "on")
        return count

    async def do_read(self, to: str) -> Any:
        stream = self.stream(to, ("emit", 5))
        chunks = [chunk async for chunk in stream]
        return chunks, await stream

    async def do_timer(self, key: str) -> Any:
        self.after(0.0, ("tell", "gate", "fired"), key=key)

    async def do_timers(self) -> Any:
        self.after(60.0, ("tell", "gate", "never"), key="late")
        return self.cancel_timer("late"), self.cancel_timer("late")

    async def do_charge(self, tokens: int) -> Any:
        charge(tokens=tokens)
        return "charged"

    async def do_own(self) -> Any:
        raise Own("of the worker's own")

    async def do_unknown(self) -> Any:
        kind = type("Homemade", (Exception,), {})
        raise kind("known to nobody")

    async def do_unknown_struct(self) -> Any:
        return msgspec.defstruct("Secret", [("number", int)])(number=5)

    async def do_answer(self) -> Any:
        raise GramiError("no", code="QUOTA_EXCEEDED", param="$.x", retry_after_ms=7)

    async def do_give_up(self, to: str) -> Any:
        try:
            async with asyncio.timeout(0.02):
                await self.ask(to, "hold")
        except TimeoutError:
            return "gave up"

    async def do_thread(self) -> Any:
        found = []
        thread = threading.Thread(target=lambda: found.append(self.ask("gate", "from a thread").get()))
        thread.start()
        await asyncio.to_thread(thread.join)
        return found


class Count(Message, tag="count"):
    upto: int


class Counter(Agent, lane="process", name="counter"):
    """An agent in a process of its own."""

    @handles(Count)
    async def count(self, message: Count) -> dict[str, Any]:
        for number in range(message.upto):
            self.emit(number)
        return {"pid": os.getpid(), "double": await self.call("double", number=message.upto)}


@tool(lane="process")
def double(number: int) -> int:
    """Twice the number."""
    return 2 * number


@tool(lane="process")
def where() -> int:
    return os.getpid()


@tool(lane="process", timeout=0.3)
def endless() -> int:
    while True:
        pass


@tool(lane="process", timeout=0.1)
async def endless_wait() -> int:
    await asyncio.sleep(60)
    return 0


@tool(lane="process")
def crash(how: str) -> int:
    if how == "raise":
        raise ValueError("the tool broke")
    os._exit(9)


lazy = lazy_tool("tests.process_tools:fromisoformat", lane="process")


def local_tool() -> Any:
    """A tool of a function that nobody can import."""

    @tool
    def local() -> int:
        return 1

    return local


class Dying(Actor):
    lane = "process"

    def on_start(self) -> None:
        os._exit(4)


class Endless(Actor):
    lane = "process"

    def on_start(self) -> None:
        self.tell("gate", "starting")
        time.sleep(60)


class EndlessStop(Actor):
    lane = "process"

    def on_stop(self) -> None:
        time.sleep(60)


class Counting(Actor):
    lane = "process"

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def add(self, number: int) -> int:
        self.count += number
        return self.count


class EndlessFailure(Log):
    def on_failure(self, *_: Any) -> None:
        time.sleep(60)


class Uneven(Wide):
    """Its second worker starts when the gate lets it."""

    async def on_start(self) -> None:
        await self.ask("gate", ("started", os.getpid()))


class AskedBack(Log):
    """Has asked and is answered, and is then held while the other asks it."""

    async def on_receive(self, message: Any) -> Any:
        if message == "go":
            await self.ask("other", "hello")
            self.tell("other", "ask back", detached=True)
            await self.ask("gate", "hold")
        return message


class AskingBack(Log):
    async def on_receive(self, message: Any) -> Any:
        if message == "ask back":
            self.tell("gate", await self.ask("caller", "who"), detached=True)
        return message
