"""``python -m grami_actors`` is the command ``grami``."""

from grami_actors.cli import main

if __name__ == "__main__":
    main()
