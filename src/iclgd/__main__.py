"""The command `iclgd`: one run, or a sweep of runs, of which every setting is a Hydra key."""

from __future__ import annotations

import sys

from iclgd.command import run


def cli() -> None:
    """Run the command line and exit: 0 all done, 1 a run failed, 2 settings refused, 130 or 143 stopped by a signal."""
    sys.exit(run(sys.argv[1:]).code)


if __name__ == "__main__":
    cli()
