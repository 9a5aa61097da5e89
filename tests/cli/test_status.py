import socket

import pytest

from iclgd.cli import status
from iclgd.cli.sweep_record import SweepRecord
from iclgd.runs.folder import RunFolder, State, Status
from report_fixtures import write_run


@pytest.fixture
def sweep(tmp_path):
    folder = tmp_path / "sweep"
    states = {
        "a": Status(state=State.done, seconds=10.0, started_at="2026-01-01T00:00:00+00:00"),
        "b": Status(state=State.running, seconds=4.0, progress={"stage": "finetune", "done": 3, "total": 8}),
        "c": Status(state=State.failed, error="RuntimeError: [bold]no[/bold] luck"),
        "d": Status(state=State.running, owner={"host": socket.gethostname(), "pid": 1}),
        "e": Status(state=State.interrupted),
        "f": Status(state=State.done, seconds=20.0, **{"diverged": True, "diverged_at": 7}),
    }
    for name, written in states.items():
        RunFolder(folder / name)._write_status(written)
    SweepRecord.begin(folder, total=9)
    with RunFolder(folder / "b").claim():
        yield folder


def test_every_state_is_shown_with_its_progress(sweep, capsys):
    status.cli([str(sweep)])
    told = capsys.readouterr().out
    shown = {line.split()[0]: line.split()[1] for line in told.splitlines()[1:7]}
    assert shown == {"a": "done", "b": "running", "c": "failed", "d": "stale", "e": "interrupted", "f": "done"}
    assert "finetune 3/8" in told and "RuntimeError: [bold]no[/bold] luck" in told and "diverged at step 7" in told
    assert "2 done, 1 failed, 1 interrupted, 1 running, 1 stale".split(", ")[0] in told
    assert "3 waiting" in told and "\x1b" not in told
    (SweepRecord.latest(sweep).folder / "total.json").write_text("")  # as after a full disk
    status.cli([str(sweep)])
    assert "waiting" not in capsys.readouterr().out


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


def test_a_list_shows_what_varied(tmp_path, capsys):
    for sweep, shots, lr, seed in (("b", 8, 1e-2, 0), ("b", 4, 1e-1, 1), ("a/deep", 8, 1e-3, 0)):
        write_run(tmp_path / sweep / f"run{shots}", shots=shots, lr=lr, seed=seed, finetune={"layers": [0, 1]})
    status.cli([str(tmp_path)])
    deep, *told = capsys.readouterr().out.splitlines()[1:]
    assert deep.split()[:2] == ["run8", "done"] and told[0].endswith("a/deep: 1 done")
    assert told[1].split() == ["run", "state", "shots", "lr", "seed", "took", "progress"]
    rows = [line.split()[:5] for line in told[2:4]]
    assert rows == [["run4", "done", "4", "0.1", "1"], ["run8", "done", "8", "0.01", "0"]]
    assert max(map(len, told[1:4])) <= 80
