"""The command `iclgd`: one run, or a sweep of runs, of which every setting is a Hydra key."""

from __future__ import annotations

import os
import sys


def cli() -> None:
    """Run the command line and exit: 0 all done, 1 a run failed, 2 settings refused, 130 or 143 stopped by a signal."""
    arguments = sys.argv[1:]
    if os.getcwd() not in sys.path:  # functions of the user's own lie there; last, so that they shadow nothing
        sys.path.append(os.getcwd())
    try:
        sys.exit(_run(arguments))
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from iclgd import __version__

        sys.stdout.write(f"iclgd {__version__}\n")
    elif arguments == ["--keys"]:
        from iclgd.cli import keys

        sys.stdout.write(keys.text())
    elif arguments[:1] == ["new"]:
        from iclgd.cli import new

        return new.cli(arguments[1:])
    elif "--dry-run" in arguments:
        from iclgd.cli import plan

        return plan.show([argument for argument in arguments if argument != "--dry-run"])
    else:
        from iclgd.cli.command import run

        return run(arguments).code
    return 0


if __name__ == "__main__":
    cli()
