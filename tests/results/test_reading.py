"""A truncated, mistyped or foreign run folder costs one line in report, status and resume."""

from __future__ import annotations

import pytest

import report_fixtures
from configs import config
from iclgd.cli import status
from iclgd.report.__main__ import cli as report
from iclgd.results.frame import Results
from iclgd.results.reading import ReportError
from iclgd.runs.execute import Ending, execute
from iclgd.runs.files import DamagedRun, State
from iclgd.runs.folder import RunFolder
from report_fixtures import write_run

ESCAPES = "\x1b[2J\x1b]0;owned\x07[/red][bold]\u202e</script><script>window.pwned = 1</script>"


def put(name, content):
    return lambda folder: (folder / name).write_text(content)


def change(name, **fields):
    return lambda folder: report_fixtures.change(folder, name, **fields)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def zeros(name):
    """A large file whose second half was never written, of the right size."""

    def damage(folder):
        change(name, padding="x" * (2 << 20))(folder)
        seal(folder)
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))

    return damage


def foreign(name, **fields):
    def write(folder):
        change(name, **fields)(folder)
        seal(folder)

    return write


def seal(folder):
    """Note sizes and digests of the files, as a finished run does."""
    run = RunFolder(folder)
    run._status = run.status()
    run.finish()


DAMAGED = {
    "an empty status": (put("status.json", ""), "status.json cannot be read"),
    "a foreign status": (put("status.json", '{"state": "perhaps"}'), "status.json.state"),
    "a failed run": (change("status.json", state="failed", error=ESCAPES), "is failed"),
    "scores cut short": (cut("scores.json"), "scores.json is not what the finished run wrote"),
    "values cut short": (cut("scores.parquet"), "scores.parquet is not what the finished run wrote"),
    "a digit": (change("scores.json", sim_aou__mean=0.75), "scores.json is not what the finished run wrote"),
    "zeros in a large file": (
        zeros("prompts.json"),
        "prompts.json is not what the finished run",
    ),
    "no config": (lambda folder: (folder / "config.yaml").unlink(), "config.yaml is not what"),
    "code in the config": (put("config.yaml", "a: !!python/object/apply:os._exit [3]"), "config.yaml is not what"),
}


FOREIGN = {  # whole, of another version
    "an unknown role": (
        foreign("config.yaml", finetune__role="oracle"),
        "config.yaml.role: Input should be 'floor', 'control',",
    ),
    "a score of another form": (
        foreign("scores.json", sim_aou={"value": 0.5}),
        "scores.json: KeyError('mean')",
    ),
}
LEFT_OUT = DAMAGED | FOREIGN


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A good run, and one folder for each kind of damage."""
    root = tmp_path_factory.mktemp("sweep")
    write_run(root / "good", examples=4, layers=2)
    for number, (damage, _) in enumerate(LEFT_OUT.values()):
        folder = write_run(root / f"a{number:02d}", examples=4, layers=2, seed=1, variant="lcgd")
        seal(folder)
        damage(folder)
    return root


def test_each_damaged_run_is_left_out_with_a_reason(sweep):
    results = Results.read([sweep])
    assert [run.name for run in results] == ["good"] and len(results.left_out) == len(LEFT_OUT)
    for (_, reason), (_, expected) in zip(results.left_out, LEFT_OUT.values(), strict=True):
        assert reason.startswith(expected) and "\n" not in reason, reason


def test_a_file_that_is_damaged_later_is_named_with_its_folder(tmp_path):
    folder = write_run(tmp_path / "run", examples=4, layers=2)
    [run] = Results.read([tmp_path])
    (folder / "prompts.json").write_text("")
    (folder / "scores.parquet").write_text("PAR1")
    for read in (run.prompts, lambda: run.table("scores")):
        with pytest.raises(DamagedRun, match=rf"^{folder}: .* cannot be read"):
            read()


def test_a_report_and_the_status_take_one_line_for_each(sweep, tmp_path, caplog, capsys):
    assert report([str(sweep), "--out", str(tmp_path / "out")]) == 0
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("left out")]
    assert len(lines) == len(LEFT_OUT)
    capsys.readouterr()
    caplog.clear()
    status.cli([str(sweep)])
    shown = capsys.readouterr().out
    assert shown.count("good") == 1 and len(shown.splitlines()) <= 2 + len(lines) + 1
    for text in (*lines, shown):
        assert "\x1b" not in text and "\u202e" not in text and "\a" not in text


@pytest.fixture(scope="module")
def settings():
    return config("model=toy", "task=toy", "tracking=none", "metric=[sim_aou]")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_sweep_that_comes_upon_a_damaged_run_makes_it_again(name, settings, tmp_path):
    def experiment(_config, folder, *_):
        folder.write("scores.json", {"sim_aou": {"mean": 0.125}})
        return {"sim_aou": {"mean": 0.125}}

    folder = write_run(tmp_path / "run", examples=4, layers=2)
    seal(folder)
    DAMAGED[name][0](folder)
    assert execute(settings, folder, experiment).ending is Ending.done
    assert RunFolder(folder).state() is State.done
    assert RunFolder(folder).read_json("scores.json") == {"sim_aou": {"mean": 0.125}}
    assert execute(settings, folder, experiment).ending is Ending.skipped


def test_a_run_in_two_sweeps_counts_once(tmp_path):
    for name in ("single", "multirun"):
        write_run(tmp_path / name / "0123456789ab")
    results = Results.read([tmp_path])
    ((folder, reason),) = results.left_out
    assert len(results) == 1 and folder.name == "0123456789ab" and reason.startswith("is the same run as")
    with pytest.raises(ReportError, match="is not a folder"):
        Results.read([tmp_path / "nowhere"])
