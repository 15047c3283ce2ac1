"""The program of a shim: ``python -I -S start.py FOLDER LOCK TREE LIFELINE``. Floor 12.

FOLDER is that of the attempt, LOCK and TREE are the descriptors of its locks, LIFELINE the read end of a pipe that the
server holds open, or -1.
"""

from __future__ import annotations

import sys


def start() -> None:
    """Run the shim, or, in the process that it made, the job."""
    folder = __file__.rpartition("/")[0]
    # What is around it is not run: that would take longer than all of the shim.
    for name, levels in (("grami_actors", 2), ("grami_actors.jobs", 1)):
        package = type(sys)(name)
        package.__path__ = [folder.rsplit("/", levels)[0]]
        sys.modules[name] = package
    from grami_actors.jobs.shim.main import main  # noqa: PLC0415 - see above

    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))


if __name__ == "__main__":
    start()
