"""``grami serve``: a swarm behind its gateway, until it is told to end. Floor 17."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from loguru import logger

from grami_actors.cli.app import File, LogLevel, app, go, set_log_level
from grami_actors.cli.config import ConfigFile
from grami_actors.config import Config, load
from grami_actors.logs import log_to
from grami_actors.manager import GrowthManager
from grami_actors.recording.recorder import recording
from grami_actors.recording.tape import header
from grami_actors.scenario import script as scripts

FLUSH_EVERY = 1.0
"""Seconds between two looks at what the log left out."""

Record = Annotated[
    Path | None, typer.Option("--record", help="Write down all that happens, as JSON lines; there is no such file yet.")
]


@app.command()
def serve(
    file: File,
    host: Annotated[str | None, typer.Option(help="Address to bind. (default: 127.0.0.1)")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. (default: 0)", min=0, max=65535)] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="A web origin whose pages may connect. Repeat for more.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A Host name besides loopback. Repeat for more.")] = None,
    auth: Annotated[
        list[str] | None, typer.Option(help="What clients must show: keys or jwt. Repeat for either of both.")
    ] = None,
    allow_anonymous: Annotated[
        bool | None,
        typer.Option("--allow-anonymous", help="Serve other machines although nobody has to show anything."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate chain (PEM); then it is wss:// only.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM), if in a file of its own.")] = None,
    reuse_port: Annotated[
        bool | None, typer.Option("--reuse-port", help="Share the port with other servers of this machine.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where jobs, API keys and the state file are kept. (default: .grami)")
    ] = None,
    record: Record = None,
    config: ConfigFile = None,
    log_level: LogLevel = "INFO",
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,  # noqa: FBT002
) -> None:
    """Serve a swarm over WebSocket until Ctrl-C, or until an administrator ends it (`admin.drain`).

    The first line on standard output is JSON and says where; the log goes to standard error.
    Clients on this machine find the server by themselves: try `grami describe` in another terminal.
    All other settings come from variables and a file: `grami config` shows them. With certificates or keys,
    SIGHUP makes the server read them again.
    """
    set_log_level(log_level, as_json=log_json)
    # An option that was not given must not stand in the way of variables and the file; it may be an empty list.
    settings = load(
        file=config,
        host=host,
        port=port,
        allowed_origins=allow_origin or None,
        allowed_hosts=allow_host or None,
        auth=auth or None,
        allow_anonymous=allow_anonymous,
        tls_cert=tls_cert,
        tls_key=tls_key,
        reuse_port=reuse_port,
        state_dir=state_dir,
    )
    script = scripts.load(file)
    go(_serve(script, settings, record))


async def _serve(script: scripts.Script, config: Config, record: Path | None) -> int:
    manager = GrowthManager(script.swarm, config)
    log = log_of(manager)
    with recording(manager, record, header(script.path)):
        await _until_drained(manager)
    log.cancel()
    await asyncio.wait((log,))
    logger.info("stopped")
    return 0


async def _until_drained(manager: GrowthManager) -> None:
    other = manager.replaces
    async with manager:
        if other is not None:
            logger.warning(
                "{} named another running server (process {}); clients find this one now",
                manager.config.state_dir,
                other.pid,
            )
        _reload_when_told(manager)
        line = {"event": "listening", "url": manager.url, "port": manager.port, "pid": os.getpid()}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()
        with contextlib.suppress(asyncio.CancelledError):
            await manager.drained()
        logger.info("stopping")


def log_of(manager: GrowthManager) -> asyncio.Task[None]:
    """Write its log, until the task is cancelled."""
    lines = log_to(manager.system.bus, slow_after=manager.config.slow_request_ms / 1000)

    async def flush() -> None:
        try:
            while True:
                await asyncio.sleep(FLUSH_EVERY)
                lines.flush()
        finally:
            lines()

    return asyncio.create_task(flush())


def _reload_when_told(manager: GrowthManager) -> None:
    # Without anything to reload, SIGHUP stays what it is to programs whose terminal is closed: the end.
    if manager.config.tls_cert is None and not manager.config.auth:
        return
    with contextlib.suppress(NotImplementedError, AttributeError):  # neither the signal nor its handler on Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, manager.reload)
