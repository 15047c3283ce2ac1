"""``grami token``: make, list and revoke the API keys of a server. Floor 17."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from grami_actors.api_keys import KEYS_FILE, ApiKey, KeyStore
from grami_actors.cli.app import AsJson, app, err, print_data, print_table
from grami_actors.config import load

token = typer.Typer(
    help="Make, list and revoke API keys, for servers that ask for one (GRAMI_AUTH=keys).",
    no_args_is_help=True,
)
app.add_typer(token, name="token")

KeysFile = Annotated[
    Path | None, typer.Option("--keys-file", help="(default: GRAMI_KEYS_FILE, or keys.json in the state directory)")
]
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@token.command()
def create(
    name: Annotated[str, typer.Argument(help="Whom it is for; what rules, limits and logs call them.")],
    scope: Annotated[list[str] | None, typer.Option(help="What it grants, such as admin. Repeat for more.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends, such as 12h, 30d or 8w. (default: never)")
    ] = None,
    keys_file: KeysFile = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Make an API key and print its token, which is shown only this once.

    A running server accepts it within a second.

    For example: grami token create ci --scope admin --expires 30d
    """
    now = time.time()
    ends = None if expires is None else now + _duration(expires)
    key, text = _store(keys_file).create(name, scope or (), now=now, expires_at=ends)
    if as_json:
        print_data({**_described(key, now), "token": text}, as_json=True)
        return
    sys.stdout.write(text + "\n")
    until = f"until {_minute(key.expires_at)} UTC" if key.expires_at else "until it is revoked"
    err.print(
        f"This is the token of {key.name}, good {until}. It is shown only now: keep it like a password.\n"
        f"To end it: grami token revoke {key.id}",
        markup=False,
        highlight=False,
        soft_wrap=not err.is_terminal,
    )


@token.command("list")
def show(keys_file: KeysFile = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Show all API keys, also those that ended; never their tokens, which nobody has but their owners.

    For example: grami token list --json
    """
    now = time.time()
    store = _store(keys_file)
    keys = store.all_keys()
    if as_json:
        print_data([_described(key, now) for key in keys], as_json=True)
        return
    if not keys:
        err.print(f"{store.path} has no keys; make one: grami token create NAME", markup=False, highlight=False)
    rows = [
        (key.id, key.name, " ".join(key.scopes), _minute(key.created_at), _minute(key.expires_at), key.state(now))
        for key in keys
    ]
    print_table("API keys", ("id", "name", "scopes", "created (UTC)", "expires (UTC)", "state"), rows)


@token.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a key, from `grami token list`.")],
    keys_file: KeysFile = None,
) -> None:
    """End an API key for good. A running server learns of it within a second.

    For example: grami token revoke 3f9c2a71b0de
    """
    key = _store(keys_file).revoke(key_id, now=time.time())
    err.print(f"{key.id} of {key.name} is revoked", markup=False, highlight=False, soft_wrap=True)


def _store(given: Path | None) -> KeyStore:
    config = load(keys_file=given)
    return KeyStore(config.keys_file or config.state_dir / KEYS_FILE)


def _duration(text: str) -> int:
    """The seconds of a time such as ``30d``."""
    match = re.fullmatch(r"0*([1-9][0-9]{0,4})([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a time such as 90m, 12h, 30d or 8w", param_hint="--expires")
    return int(match[1]) * _SECONDS[match[2]]


def _minute(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"


def _described(key: ApiKey, now: float) -> dict[str, Any]:
    """A key for machines: all that is known of it but the hash."""
    return {
        "id": key.id,
        "name": key.name,
        "scopes": key.scopes,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "state": key.state(now),
    }
