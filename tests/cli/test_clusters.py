"""Signals of a cluster, sent to tasks of submitit on this machine, and what a cluster refuses."""

import signal

import psutil

from command_line import PATIENCE, runs, started, states, wait_until
from iclgd.cli import command, hydra_setup
from iclgd.runs.folder import State

LOCAL = ("seed=0,1", "hydra/launcher=submitit_local", "runtime.rerun=never")


def signalled(process, sweep):
    """Send what a cluster sends a task that it ends, as soon as its run is there, and wait until that is stopped."""
    [run] = [run for run in runs(sweep) if run.state() is State.running]
    task = psutil.Process(run.status().owner["pid"])
    task.send_signal(signal.SIGTERM)
    wait_until(lambda: "Bypassing signal SIGTERM" in (run.path / "run.log").read_text())
    task.send_signal(signal.SIGUSR2)
    wait_until(lambda: "was interrupted" in (run.path / "run.log").read_text())
    return run


def test_a_preempted_task_is_queued_again_and_goes_on(tmp_path):
    process, sweep = started(tmp_path, *LOCAL, hold=1, done=1)
    run = signalled(process, sweep)
    (tmp_path / "hold1").unlink()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and "2 done" in out, err
    assert run.status().attempt == 2 and "failed" not in (run.path / "run.log").read_text()


def test_a_task_whose_time_is_over_ends_in_plain_words(tmp_path):
    """submitit takes SIGUSR2 for the time limit if less than ten minutes of it are left."""
    limits = ("hydra.launcher.timeout_min=5", "+hydra.launcher.max_num_timeout=0")
    process, sweep = started(tmp_path, *LOCAL, *limits, hold=1, done=1)
    signalled(process, sweep)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "1 done, 1 interrupted" in out
    assert "the time limit of its task is over: raise hydra.launcher.timeout_min; the same command runs it again" in err
    assert "UncompletedJobError" not in err and sorted(states(sweep)) == [State.done, State.interrupted]


def test_a_sweep_for_slurm_is_refused_at_once_where_there_is_none(in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.run(["-m", "seed=0,1", "hydra/launcher=submitit_slurm"]).code == 2
    told = capsys.readouterr().err
    assert "needs Slurm's srun" in told and "hydra/launcher=submitit_local" in told and "composing" not in told


def test_the_limit_of_a_clusters_arrays_is_named_with_the_remedy():
    from submitit.core.utils import FailedJobError

    error = FailedJobError("sbatch: error: Batch job submission failed: Invalid job array specification")
    assert "hydra.sweeper.max_batch_size=N for job arrays" in str(hydra_setup.explain(error))
