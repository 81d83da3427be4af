"""``python3 -m virtpass``."""

from virtpass.cli import run

if __name__ == "__main__":
    run()
