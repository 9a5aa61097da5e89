"""Strangers' run folders count as they are, or are left out with a reason; one of them costs one line."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest

import chromium
from configs import config
from hostile_runs import CASES, write_sealed
from iclgd.report import formats, tables
from iclgd.report.__main__ import cli as report
from iclgd.results.frame import Results
from iclgd.runs import status
from iclgd.runs.execute import Ending, execute
from iclgd.runs.folder import RunFolder
from limits import bounded

SECRET = "secret"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A good run, and another one that cases change."""
    root = tmp_path_factory.mktemp("whole")
    write_sealed(root / "good", variant="gd", seed=0)
    write_sealed(root / "theirs", variant="lcgd", seed=1)
    return root


@pytest.fixture(scope="module")
def expected(whole) -> Results:
    return Results.read([whole])


def sweep_of(whole: Path, root: Path, *names: str) -> Path:
    """A sweep with the good run and one folder for each case, and `outside`, which nobody may touch."""
    (root / "outside").mkdir(parents=True)
    (root / "outside" / SECRET).write_text(SECRET)
    shutil.copytree(whole / "good", root / "sweep" / "good")
    (root / "sweep" / "outside").symlink_to(root / "outside")
    for number, name in enumerate(names):
        folder = root / "sweep" / f"a{number:03d}"  # before the good one, so that it would take its place
        shutil.copytree(whole / "theirs", folder)
        CASES[name].damage(folder)
    return root / "sweep"


def untouched(root: Path) -> bool:
    outside = root / "outside"
    return [path.name for path in outside.iterdir()] == [SECRET] and (outside / SECRET).read_text() == SECRET


def records(results: Results, name: str):
    return next(run.records for run in results.runs if run.name == name)


@pytest.mark.timeout(300)  # of a pipe that is waited for
@pytest.mark.parametrize("name", CASES)
def test_a_strangers_run_counts_or_is_left_out_with_a_reason(name, whole, expected, tmp_path, capsys):
    sweep, case = sweep_of(whole, tmp_path, name), CASES[name]
    with bounded():
        results = Results.read([sweep])
        status.cli([str(sweep)])
    shown = capsys.readouterr().out
    if case.reason is None:
        assert results.left_out == ()
        theirs = {key: record for key, record in records(results, "a000").items() if key[0] != "odd"}
        assert theirs == records(expected, "theirs")
        assert all(array.shape[0] == 4 for array in results.runs[0].values.values())
    else:
        ((folder, reason),) = results.left_out
        assert folder.name == "a000"
        assert re.search(case.reason, reason) and len(reason) < 500, reason
    assert records(results, "good") == records(expected, "good") and len(results.frame)
    assert shown.count("good") == 1 and "\x1b" not in shown and "\u202e" not in shown
    assert untouched(tmp_path)


@pytest.fixture(scope="module")
def settings():
    return config("model=toy", "task=toy", "tracking=none", "metric=[sim_aou]")


def experiment(_config, folder, _progress):
    folder.write_json("scores.json", {"sim_aou": {"mean": 0.125}})
    folder.write_text("figures/one.txt", "a figure")
    return {"sim_aou": {"mean": 0.125}}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", CASES)
def test_a_sweep_that_comes_upon_a_strangers_run_skips_it_or_makes_it_again(name, settings, whole, tmp_path):
    folder = RunFolder(sweep_of(whole, tmp_path, name) / "a000")
    with bounded():
        outcome = execute(settings, folder.path, experiment)
    if outcome.ending is Ending.failed:
        assert name in ("figures elsewhere", "scores: a folder")  # in the way of what the run writes, and named
        assert re.search("a link leads out|Is a directory", outcome.message)
    else:
        assert outcome.ending in (Ending.done, Ending.skipped) and folder.is_done()
    if outcome.ending is Ending.done:
        assert folder.read_json("scores.json") == {"sim_aou": {"mean": 0.125}}
        assert execute(settings, folder.path, experiment).ending is Ending.skipped
    assert untouched(tmp_path)


@pytest.fixture(scope="module")
def reported(whole, tmp_path_factory) -> tuple[Path, list[str]]:
    """A report of all cases at once, and the lines that say what was left out."""
    root, said = tmp_path_factory.mktemp("reported"), []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("iclgd.report").addHandler(listener)
    try:
        sweep = sweep_of(whole, root, *CASES)
        with bounded(seconds=60, megabytes=600):  # figures are drawn too
            assert report([str(sweep), "--out", str(root / "all")]) == 0
    finally:
        logging.getLogger("iclgd.report").removeHandler(listener)
    return root, [line for line in said if line.startswith("left out")]


def test_a_report_of_all_of_them_says_what_one_of_the_good_ones_says(reported, expected):
    root, said = reported

    def rows(table: str) -> list[str]:
        return sorted(line.partition(",")[2] for line in table.splitlines())  # the first column is the folder's name

    assert rows((root / "all" / "scores.csv").read_text()) == rows(formats.frame_to_csv(expected.frame))
    assert (root / "all" / "summary.md").read_text() == formats.to_markdown(tables.summary(expected))
    assert len(said) == len(CASES) - 1 and not any("\n" in line or "\x1b" in line for line in said)
    assert untouched(root)


@chromium.needed
def test_the_page_of_all_of_them_runs_nobodys_script(reported, tmp_path):
    """Nor does it ask for anything; a script that somebody puts into the file is seen by the same check."""
    page, ready = reported[0] / "all" / "report.html", "document.documentElement?.dataset.ready === 'true'"
    assert "window.pwned" in page.read_text(), "a stranger's script stands there, as text"
    with chromium.browser() as tab:
        tab.open(page, ready)
        assert tab.complaints() == [] and len(tab.requests()) == 1 and tab.evaluate("window.pwned") is None
        injected = tmp_path / "injected.html"
        injected.write_text(page.read_text().replace("</body>", "<script>window.pwned = 3</script></body>"))
        tab.open(injected, ready)
        assert "script" in " ".join(tab.complaints()) and tab.evaluate("window.pwned") is None
        tab.events.clear()
        injected.write_text(injected.read_text().replace('http-equiv="Content-Security-Policy"', ""))
        tab.open(injected, "window.pwned === 3")


def test_a_report_folder_that_leads_elsewhere_is_not_written_to(whole, tmp_path):
    folder = sweep_of(whole, tmp_path, "a report elsewhere") / "a000"
    assert report([str(folder)]) == 2
    out = tmp_path / "out"
    out.mkdir()
    (out / "figures").symlink_to(tmp_path / "outside")
    assert report([str(folder), "--out", str(out)]) == 2
    assert untouched(tmp_path)


def test_the_corpus_is_large_enough():
    assert len(CASES) >= 60
