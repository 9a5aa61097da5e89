"""How the tests call the real command line in processes of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from iclgd.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0  # seconds: what takes longer hangs, however busy the machine is


def environment(fake: bool = True) -> dict[str, str]:
    """The environment of a command: this checkout first, one thread, and, if asked, the fake experiment."""
    first = [str(ROOT / "tests" / "support" / "fake_experiment")] if fake else []
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HYDRA_", "ICLGD_", "COV_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([*first, str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, module: str = "iclgd", fake: bool = True) -> subprocess.Popen[str]:
    """The command, running in `folder`, in a process group of its own.

    A suite that a shell started in the background ignores Ctrl-C, and what it starts would inherit that.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environment(fake),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def iclgd(folder: Path, *arguments: str, fake: bool = True) -> subprocess.CompletedProcess[str]:
    """The command's end."""
    process = start(folder, *arguments, fake=fake)
    out, err = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_until(holds: Callable[[], bool]) -> None:
    """Return as soon as it holds; what does not come about is an error."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, "what was waited for did not come about"
        time.sleep(0.02)


def runs(sweep):
    return [RunFolder(path) for path in sorted(sweep.glob("[!.]*/"))]


def results(sweep):
    return {run.path.name: (run.path / "scores.json").read_bytes() for run in runs(sweep) if run.is_done()}


def started(folder, *arguments, hold, done):
    """A sweep in which the seed `hold` waits, and `done` others or more are finished."""
    (folder / f"hold{hold}").touch()
    process, sweep = start(folder, "-m", *arguments), folder / "outputs" / "multirun"
    wait_until(lambda: (folder / f"held{hold}").exists() and len(results(sweep)) >= done)
    return process, sweep


def states(sweep):
    return [run.state() for run in runs(sweep)]
