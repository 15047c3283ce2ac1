"""``grami serve`` and ``grami run``: a swarm behind its gateway, for ever or for its scenarios. Floor 15."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from loguru import logger

from grami_actors.cli.app import AsJson, File, LogLevel, app, err, go, out, set_log_level
from grami_actors.cli.config import ConfigFile
from grami_actors.config import Config, load
from grami_actors.logs import log_to
from grami_actors.manager import GrowthManager
from grami_actors.scenario import script as scripts
from grami_actors.scenario.play import Result
from grami_actors.scenario.transcript import Transcript, summarise

FLUSH_EVERY = 1.0
"""Seconds between two looks at what the log left out."""

_OWN: dict[str, Any] = {
    name: getattr(Config(), name)
    for name in ("host", "port", "reuse_port", "tls_cert", "tls_key", "auth", "rules", "rates")
}
"""What the server of a scenario does not take from variables and the file."""


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
    )
    script = scripts.load(file)
    go(_serve(script, settings))


async def _serve(script: scripts.Script, config: Config) -> int:
    manager = GrowthManager(script.swarm, config)
    log = _log(manager)
    other = manager.replaces
    async with manager:
        if other is not None:
            logger.warning(
                "{} named another running server (process {}); clients find this one now", config.state_dir, other.pid
            )
        _reload_when_told(manager)
        line = {"event": "listening", "url": manager.url, "port": manager.port, "pid": os.getpid()}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        sys.stdout.flush()
        with contextlib.suppress(asyncio.CancelledError):
            await manager.drained()
        logger.info("stopping")
    log.cancel()
    await asyncio.wait((log,))
    logger.info("stopped")
    return 0


def _log(manager: GrowthManager) -> asyncio.Task[None]:
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


@app.command()
def run(
    file: File,
    names: Annotated[list[str] | None, typer.Argument(help="Which scenarios; all if none is named.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="Log to standard error, from DEBUG, INFO, WARNING or ERROR on.")
    ] = None,
) -> None:
    """Play the scenarios of a file: real clients, a real WebSocket, a live transcript.

    The exit code is 1 when a check fails.

    For example: grami run scenarios/content_swarm.py three_clients_at_once
    """
    if log_level is not None:
        set_log_level(log_level)
    script = scripts.load(file)
    scripts.choose(script, names or ())
    go(_run(script, names or [], as_json=as_json, log=log_level is not None))


async def _run(script: scripts.Script, names: list[str], *, as_json: bool, log: bool) -> int:
    # A scenario's server is its own: where another one listens, and who may come to it, is not for its clients.
    config = msgspec.structs.replace(load(), **_OWN)
    console = err if as_json else out
    logs = []
    with Transcript(console) as transcript:

        def watch(event: Any) -> None:
            if log and isinstance(event, GrowthManager):
                logs.append(_log(event))
            transcript(event)

        results: tuple[Result, ...] = await scripts.run(script, names, config, watch)
    if as_json:
        sys.stdout.write(msgspec.json.encode(results).decode() + "\n")
    else:
        summarise(console, results)
    return 0 if all(result.passed for result in results) else 1
