# ruff: noqa: PLC0415 - a peer need not be installed
"""One peer of the benchmark of jobs: ``jobs_peers.py huey|celery|dbos``; what it took is a line of JSON.

Each queues on SQLite and runs trivial functions in one worker process (huey: a consumer with threads; Celery: threads;
DBOS: in the process that submits, as it is meant to be used). The workers take the shortest pause between two looks at
the queue that the peer's own documentation shows, where it looks at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TIMES = 30
MANY = 1000
PAUSE = 0.1


def folder() -> Path:
    """Where the queue is; the worker finds it in its environment."""
    return Path(os.environ["JOBS_PEERS_FOLDER"])


def huey_app() -> tuple[Any, Any]:
    from huey import SqliteHuey

    app = SqliteHuey("bench", filename=str(folder() / "huey.db"), fsync=True)
    return app, app.task(name="stamp")(time.time)


def celery_app() -> tuple[Any, Any]:
    from celery import Celery

    database = folder() / "celery.db"
    app = Celery("bench", broker=f"sqla+sqlite:///{database}", backend=f"db+sqlite:///{folder() / 'results.db'}")
    from kombu.transport.sqlalchemy import Transport

    # As an option of the transport it would go on to SQLAlchemy, which does not know it.
    Transport.polling_interval = PAUSE
    app.conf.worker_hijack_root_logger = False

    @app.task(name="stamp")
    def stamp() -> float:
        return time.time()

    return app, stamp


def measure(submit: Callable[[], Any], result: Callable[[Any], float]) -> dict[str, float]:
    """How soon the first line runs, how many are accepted a second, and how many are done."""
    result(submit())
    waits = []
    for _ in range(TIMES):
        at = time.time()
        waits.append(result(submit()) - at)
    begun = time.perf_counter()
    jobs = [submit() for _ in range(MANY)]
    accepted = time.perf_counter()
    for each in jobs:
        result(each)
    over = time.perf_counter()
    return {
        "p50_ms": statistics.median(waits) * 1e3,
        "accepted_per_s": MANY / (accepted - begun),
        "per_s": MANY / (over - begun),
    }


@contextlib.contextmanager
def worker(name: str) -> Iterator[None]:
    """The process that does the work."""
    process = subprocess.Popen([sys.executable, __file__, name, "work"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()


def huey() -> dict[str, float]:
    _, stamp = huey_app()
    with worker("huey"):
        return measure(stamp, lambda job: job.get(blocking=True, timeout=60, backoff=1.0, max_delay=0.005))


def celery() -> dict[str, float]:
    _, stamp = celery_app()
    with worker("celery"):
        return measure(stamp.delay, lambda job: job.get(timeout=120, interval=0.005))


def dbos() -> dict[str, float]:
    from dbos import DBOS

    logging.disable(logging.CRITICAL)
    DBOS(
        config={"name": "bench", "system_database_url": f"sqlite:///{folder() / 'dbos.db'}", "run_admin_server": False}
    )

    @DBOS.workflow()
    def stamp() -> float:
        return time.time()

    DBOS.launch()
    queue = DBOS.register_queue("bench", polling_interval_sec=PAUSE)
    try:
        return measure(lambda: queue.enqueue(stamp), lambda job: float(job.get_result(polling_interval_sec=0.005)))
    finally:
        DBOS.destroy()


def work(name: str) -> None:
    """Be the worker."""
    if name == "huey":
        app, _ = huey_app()
        app.create_consumer(workers=4, worker_type="thread", initial_delay=0.005, max_delay=PAUSE).run()
    else:
        app, _ = celery_app()
        app.worker_main(["worker", "--pool", "threads", "--concurrency", "4", "--loglevel", "CRITICAL"])


def main() -> None:
    name = sys.argv[1]
    if sys.argv[2:] == ["work"]:
        work(name)
        return
    with tempfile.TemporaryDirectory(prefix="grami-bench-") as path:
        os.environ["JOBS_PEERS_FOLDER"] = path
        found = {"huey": huey, "celery": celery, "dbos": dbos}[name]()
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads that are left must not keep the process


if __name__ == "__main__":
    main()
