"""A page in a real browser, and the web site that it is of."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
PATIENCE = 30.0

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


class Site:
    """A web site with one page, and files beside it; the page tells it what came of it."""

    def __init__(self) -> None:
        self.policy = ""
        self.told: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.page = ""
        self.files: dict[str, Path] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line.split(":")[1]) for line in head.split("\r\n") if "content-length" in line.lower()), 0)
        body = (await reader.readexactly(length)).decode()
        method, path, _ = head.split(" ", 2)
        if (method, path) == ("POST", "/told") and not self.told.done():
            self.told.set_result(json.loads(body))
        text = self.page.encode() if path == "/" else self.files[path].read_bytes() if path in self.files else b""
        status = "200 OK" if text else "204 No Content"
        kind = "text/html" if path == "/" else "text/javascript"
        fields = [
            f"HTTP/1.1 {status}",
            f"Content-Type: {kind}; charset=utf-8",
            f"Content-Length: {len(text)}",
            f"Content-Security-Policy: {self.policy}",
            "Connection: close",
        ]
        writer.write("\r\n".join(fields).encode() + b"\r\n\r\n" + text)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Site, str]]:
    """A web site, and its origin."""
    found = Site()
    async with await asyncio.start_server(found.answer, "127.0.0.1", 0) as listener:
        yield found, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def visit(found: Site, origin: str, profile: Path) -> dict[str, Any]:
    """Open the page in a browser; what the page told its site."""
    assert CHROMIUM is not None
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--remote-debugging-port=0",  # stays until it is ended, where it would end when the page is loaded
        f"--user-data-dir={profile}",
    ]
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *flags, f"{origin}/", stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(PATIENCE):
            return await found.told
    finally:
        process.terminate()
        await process.wait()
