"""The command `iclgd`: one run, or a sweep of runs, of which every setting is a Hydra key."""

from __future__ import annotations

import sys

from iclgd.common.paths import import_from_current_folder
from iclgd.common.printable import pipe_may_close


def cli() -> None:
    """Run the command line and exit: 0 done, 1 a run failed, 2 settings refused, 130, 141 or 143 stopped."""
    import_from_current_folder()
    code = 0
    with pipe_may_close():
        code = main(sys.argv[1:])
    sys.exit(code)


def main(arguments: list[str]) -> int:
    """The exit code of a command line; each branch imports only what it needs."""
    if arguments == ["--version"]:
        from iclgd import __version__

        sys.stdout.write(f"iclgd {__version__}\n")
    elif "--keys" in arguments:
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
