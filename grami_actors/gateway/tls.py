"""The certificate that the gateway shows, and how it is renewed while connections are open. Floor 12.

Whatever is wrong with new files never harms what is in use: a pair is loaded into a context of its own, which
takes the place of the last one for the handshakes to come when it is whole.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import stat
from pathlib import Path
from typing import NoReturn

from grami_actors.errors import ConfigError
from grami_actors.watched_file import identity

OPEN_TO_ALL = stat.S_IROTH | stat.S_IWOTH


class Certificates:
    """A certificate chain with its private key, read from files.

    Args:
        cert: the chain (PEM), the server's own certificate first.
        key: the private key (PEM, without a passphrase); in the certificate's file, if ``None``.

    Attributes:
        context: for the server; it stays the same one, whatever is reloaded. TLS 1.2 and later.

    Raises:
        ConfigError: the files cannot be read or used, or do not belong together.
    """

    def __init__(self, cert: Path, key: Path | None = None) -> None:
        self._cert = cert
        self._key = key or cert
        self._seen = self._look()
        # What the server holds is the first context. Each handshake moves on to the newest as soon as the client
        # has said hello (RFC 6066 section 3; the hook is called without a name too). Loading new files into a
        # context that is in use would leave it without a key, if they were written just then.
        self.context = self._newest = self._load()
        self.context.sni_callback = self._move_on

    def _move_on(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest

    def changed(self) -> bool:
        """Whether a file was written, replaced or removed since it was last loaded, or tried. Costs two ``stat``."""
        return self._look() != self._seen

    def reload(self) -> bool:
        """Load the files again, for connections to come; those that are open live on with what they have.

        Returns:
            Whether the files were others than last time.

        Raises:
            ConfigError: as at the start; what was in use stays in use.
        """
        seen = self._look()  # before they are read: what is written meanwhile is a change
        changed, self._seen = seen != self._seen, seen
        self._newest = self._load()
        return changed

    @property
    def warning(self) -> str | None:
        """What is doubtful about the files, but does not keep them from being used."""
        try:
            mode = self._key.stat().st_mode
        except OSError:  # it was there when it was loaded
            return None
        # Other systems than POSIX make these bits up.
        if os.name != "posix" or not mode & OPEN_TO_ALL:
            return None
        return f"every user of this machine can read or change the private key in {self._key}: `chmod o-rw` it"

    def _look(self) -> tuple[tuple[int, ...], ...]:
        return identity(self._cert), identity(self._key)

    def _load(self) -> ssl.SSLContext:
        _look_for(b"CERTIFICATE-----", self._cert, "certificate")
        _look_for(b"PRIVATE KEY-----", self._key, "private key")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: 1.0 and 1.1 must not be used
        context.options |= ssl.OP_NO_RENEGOTIATION  # costs a client nothing to ask for, and the server much to do
        context.set_alpn_protocols(["http/1.1"])

        def refuse() -> NoReturn:
            # Otherwise OpenSSL would ask on the terminal, and the server hang.
            raise ConfigError(
                f"the private key in {self._key} has a passphrase: give one without, kept readable by few"
            )

        try:
            context.load_cert_chain(self._cert, self._key, refuse)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                flaw = f"the private key in {self._key} does not belong to the certificate in {self._cert}"
                raise ConfigError(f"{flaw}; while both are being replaced this is normal, try again") from None
            why = error.reason or error
            raise ConfigError(
                f"the certificate in {self._cert} or its key in {self._key} cannot be used: {why}"
            ) from None
        except OSError as error:
            raise ConfigError(f"{self._cert} or {self._key} cannot be read: {error.strerror or error}") from None
        return context


def _look_for(mark: bytes, path: Path, what: str) -> None:
    """Name the file and the flaw, which the library does not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"the {what} in {path} cannot be read: {error.strerror or error}") from None
    if mark not in content:
        raise ConfigError(f"{path} has no {what} in it (PEM, which begins with -----BEGIN)")


def warning_about_loop(loop: asyncio.AbstractEventLoop) -> str | None:
    """What TLS costs on this event loop, if it is much more than it need be."""
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return None
    return (
        "each TLS connection takes 274 KiB of memory on this event loop, and 40 KiB on uvloop's: "
        "install uvloop, and run the server with `grami serve` or in uvloop.run()"
    )
