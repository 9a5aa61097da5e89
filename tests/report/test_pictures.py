"""The pictures of the documentation: which are older than the code, and that those for papers are fit for print."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import figures as script  # tools/figures.py
from figure_cases import results

ROOT = Path(__file__).parents[2]
PDFS = sorted((ROOT / "docs" / "gallery").glob("*.pdf"))
COLUMN, PAGE = 3.3 * 72, 6.9 * 72  # points


def test_pictures_older_than_the_code_are_named():
    older = script.older_than_the_code()
    if older:
        pytest.skip(f"older than the code that draws them (make figures): {', '.join(older)}")


def test_pictures_whose_runs_are_of_no_known_revision_are_named_as_such(tmp_path, monkeypatch):
    current = {"drawn_by": script.drawing_code(), "runs_of": "6 runs of abc"}
    record = dict.fromkeys(script.DRAWN, current)
    record |= {"ladder.png": current | {"runs_of": "6 runs of None"}, "report.png": current | {"drawn_by": "x"}}
    monkeypatch.setattr(script, "PICTURES", tmp_path / "pictures.json")
    script.PICTURES.write_text(json.dumps(record))
    assert script.older_than_the_code() == ["ladder.png (its runs are of no known revision)", "report.png"]


def test_the_gallery_has_a_command_and_a_picture_for_each_figure():
    page = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    wanted = {name: one for name, one in script.DRAWN.items() if name.startswith("gallery/")}
    assert len(wanted) == 7
    for name, one in wanted.items():
        where = f"--where {' '.join(one.where)} " if one.where else ""
        assert f"iclgd-report outputs/{one.sweep} {where}--figures {one.figure} --out" in page
        assert f"({name}.svg)" in page and f"({name}.pdf)" in page


@pytest.mark.parametrize("path", PDFS, ids=lambda path: path.stem)
def test_pdfs_for_papers_have_their_fonts_fit_the_page_and_are_small(path):
    content = path.read_bytes()
    assert content.count(b"/FontFile2") >= 1 and b"/Type3" not in content
    width = float(re.search(rb"/MediaBox \[\s*0 0 ([\d.]+)", content)[1])
    assert width < COLUMN or COLUMN * 1.5 < width < PAGE
    assert len(content) < 100_000


def test_quoted_numbers_are_those_of_the_runs_and_others_stay(tmp_path, monkeypatch):
    made = results(("gd", "lcgd"), ("sim_aou",))
    monkeypatch.setattr(script.Results, "read", lambda folders: made)
    (tmp_path / "mine").mkdir()
    text = "a <!-- mine gd sim_aou -->.1<!-- -->, <!-- mine gd sim_aou mean -->x<!-- -->, "
    text += "<!-- other gd sim_aou -->.5<!-- -->, <!-- mine late sim_aou -->.6<!-- -->"
    row = made.summary.query("`finetune.name` == 'gd' and score == 'sim_aou' and layer.isna()").iloc[0]
    mean, low, high = (f"{row[name]:.3f}".lstrip("0") for name in ("mean", "low", "high"))
    written = script.with_numbers(text, tmp_path)
    assert re.sub(r"<!--.*?-->", "", written) == f"a {mean} [{low}, {high}], {mean}, .5, .6"
    assert script.with_numbers(written, tmp_path) == written


def test_quoted_tables_are_those_of_the_runs_and_others_stay(tmp_path, monkeypatch):
    made = results(("gd", "lcgd"), ("sim_aou", "sim_am_delta"))
    monkeypatch.setattr(script.Results, "read", lambda folders: made)
    (tmp_path / "mine").mkdir()
    text = "<!-- table mine sim_aou+sim_am_delta -->\nold\n<!-- -->\n<!-- table mine,other sim_aou -->\nx\n<!-- -->"
    written = script.with_numbers(text, tmp_path)
    rows = made.summary[made.summary["layer"].isna()].set_index(["finetune.name", "score"])["mean"]
    cell = ", ".join(script.short(rows["lcgd", score], 2) for score in ("sim_aou", "sim_am_delta"))
    assert f"| LCGD | demonstrations | {cell} |\n<!-- -->" in written and "old" not in written
    assert written.endswith("<!-- table mine,other sim_aou -->\nx\n<!-- -->")
    assert script.with_numbers(written, tmp_path) == written
