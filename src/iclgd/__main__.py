"""The command `iclgd`: one run, or a sweep of runs, of which every setting is a Hydra key."""

from __future__ import annotations

import os
import sys

from iclgd.common.paths import import_from_current_folder


def cli() -> None:
    """Run the command line and exit: 0 all done, 1 a run failed, 2 settings refused, 130 or 143 stopped by a signal."""
    import_from_current_folder()
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # the reader, such as head, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def main(arguments: list[str]) -> int:
    """The exit code of a command line; each branch imports only what it needs."""
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
