import pytest

from iclgd.cli import status
from iclgd.cli.invocation import Invocation
from iclgd.runs import process
from iclgd.runs.execute import Ending, Outcome
from iclgd.runs.folder import RunFolder, State, Status
from report_fixtures import write_run


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    own = process.this_process()
    states = {
        "a": Status(state=State.done, owner=own, seconds=10.0, started_at="2026-01-01T00:00:00+00:00"),
        "b": Status(state=State.running, owner=own, seconds=4.0, progress={"stage": "finetune", "done": 3, "total": 8}),
        "c": Status(state=State.failed, owner=own, error="RuntimeError: [bold]no[/bold] luck", traceback="..."),
        "d": Status(state=State.running, owner={**own, "pid": 2**22 + 1}),
        "e": Status(state=State.interrupted, owner=own),
        "f": Status(state=State.done, owner=own, seconds=20.0, **{"diverged": True, "diverged_at": 7}),
    }
    for name, found in states.items():
        RunFolder(folder / name)._write_status(found)
    Invocation.begin(folder, total=9)
    return folder


def test_every_state_is_shown_with_its_progress(sweep, capsys):
    status.cli([str(sweep)])
    told = capsys.readouterr().out
    shown = {line.split()[0]: line.split()[1] for line in told.splitlines()[1:7]}
    assert shown == {"a": "done", "b": "running", "c": "failed", "d": "stale", "e": "interrupted", "f": "done"}
    assert "finetune 3/8" in told and "RuntimeError: [bold]no[/bold] luck" in told and "diverged at step 7" in told
    assert "2 done, 1 failed, 1 interrupted, 1 running, 1 stale".split(", ")[0] in told
    assert "3 waiting" in told and "\x1b" not in told


def test_a_single_run_and_an_empty_folder(sweep, tmp_path, capsys):
    status.cli([str(sweep / "a")])
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["a", "done"]
    (tmp_path / "empty").mkdir()
    status.cli([str(tmp_path / "empty")])
    assert capsys.readouterr().out.endswith("empty: no runs\n")
    with pytest.raises(SystemExit):
        status.cli([str(tmp_path / "nowhere")])
    assert "is not a folder" in capsys.readouterr().err


def test_results_that_were_replaced_are_no_sweep(sweep, capsys):
    RunFolder(sweep / "a").retire()
    RunFolder(sweep / "a")._write_status(Status(state=State.done, seconds=1.0))
    status.cli([str(sweep.parent)])
    told = capsys.readouterr().out
    assert told.count("sweep: ") == 1 and "earlier" not in told


def test_a_list_shows_what_varied_and_is_sorted_by_it(tmp_path, capsys):
    for sweep, shots, lr, seed in (("b", 8, 1e-2, 0), ("b", 4, 1e-1, 1), ("b", 16, 1e-3, 0), ("a/deep", 8, 1e-3, 0)):
        write_run(tmp_path / sweep / f"run{shots}", shots=shots, lr=lr, seed=seed, finetune={"layers": [0, 1]})
    status.cli([str(tmp_path), "--sort", "lr"])
    deep, *told = capsys.readouterr().out.splitlines()[1:]
    assert deep.split()[:2] == ["run8", "done"] and told[0].endswith("a/deep: 1 done")
    assert told[1].split() == ["run", "state", "shots", "lr", "seed", "took", "progress"]
    rows = [line.split() for line in told[2:5]]
    assert [row[:5] for row in rows] == [
        ["run16", "done", "16", "0.001", "0"],
        ["run8", "done", "8", "0.01", "0"],
        ["run4", "done", "4", "0.1", "1"],
    ]
    assert max(map(len, told[1:5])) <= 80
    for key, first in (("task.shots", "run4"), ("run", "run16"), ("seed", "run16")):
        lines = status.in_order(status.run_lines(tmp_path / "b"), key)
        assert lines[0].name == first
    with pytest.raises(SystemExit):
        status.cli([str(tmp_path / "b"), "--sort", "colour"])
    assert "choose from run, state, started, took, task.shots, finetune.lr, seed" in capsys.readouterr().err


def test_an_invocation_gathers_what_its_runs_wrote(tmp_path, monkeypatch):
    invocation = Invocation.begin(tmp_path, total=3)
    assert not invocation.is_over() and Invocation.latest(tmp_path) == invocation
    monkeypatch.setenv("ICLGD_INVOCATION", str(invocation.folder))
    assert Invocation.current() == invocation
    invocation.mark(0, Outcome(Ending.done, tmp_path / "a"), tmp_path / "a")
    invocation.mark(1, Outcome(Ending.failed, tmp_path / "b", "why"), tmp_path / "b")
    invocation.mark(10, None, tmp_path / "c")
    found = invocation.outcomes()
    assert [(o.ending, o.folder.name, o.message) for o in found] == [
        (Ending.done, "a", ""),
        (Ending.failed, "b", "why"),
        (Ending.interrupted, "c", ""),
    ]
    assert invocation.count() == (2, 1) and invocation.total() == 3
