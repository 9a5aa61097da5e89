"""A child is killed (SIGKILL) at its n-th write for n = 1, 2, ...; then the run is started again as a user would.

Prints one line a moment: n, what the killed run's folder looked like, how the second start ended.
"""

import os
import signal
import sys
from pathlib import Path

from configs import config
from iclgd.runs import files
from iclgd.runs.execute import execute
from iclgd.runs.folder import RunFolder

CONFIG = config()


def experiment(config, folder, progress, prepared):
    for step in range(2):
        progress.stage(f"stage {step}", 1)()
    folder.write_json("scores.json", {"sim_aou": {"mean": 0.5}})
    folder.write_text("figures/a.txt", "x" * 1000)
    return folder.read_json("scores.json")


def killed_at(moment: int, path: Path) -> bool:
    """Run in a child that dies before, in the middle of, or after its n-th write; whether it died."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(real):
            def call(*arguments, **named):
                nonlocal calls
                calls += 1
                if calls == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        files.os.replace = counted(os.replace)
        Path.write_text = counted(Path.write_text)
        execute(CONFIG, path, experiment)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


root, moment = Path(sys.argv[1]), 0
while True:
    moment += 1
    path = root / str(moment)
    died = killed_at(moment, path)
    run = RunFolder(path)
    before = f"{run.state()} {'whole' if run.is_done() else 'unfinished'}"
    outcome = execute(CONFIG, path, experiment)
    hidden = [name.name for name in path.rglob(".*")]
    sys.stdout.write(f"{moment}|{before}|{outcome.ending}|{run.is_done()}|{hidden}\n")
    if not died:
        break
