"""The page in a real browser, its escaping, and the command that writes it all."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pandas as pd
import pytest

import chromium
from iclgd.report import page
from iclgd.report.__main__ import cli
from iclgd.report.figures import figures
from iclgd.results.frame import Results
from report_fixtures import write_run

HOSTILE = (
    (
        "<script>window.pwned=1</script></script><!-- \"'`{{7*7}}${1} \u202eevil\u2028\u2029\x00\x1b & ünï 😀 "
        "<img src=x onerror=window.pwned=2> $x$ \ud800"
    )
    .encode("utf-8", "replace")
    .decode()
)
DRAWN = "document.documentElement?.dataset.drawn === 'true'"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A sweep over rates whose every text tries to be markup, with a control, a diverged and a failed run."""
    root = tmp_path_factory.mktemp("hostile") / "<b>sweep"
    for variant in ("gd", "random_direction"):
        for lr in (1e-3, 1e-1):
            write_run(root / f"{variant}-{lr}", variant=variant, lr=lr, text=HOSTILE, task="<i>t</i>&amp;",
                      model="a/<img src=x onerror=window.pwned=3>", accuracy=(0.8, 0.8, 0.7),
                      diverged=lr == 1e-1 and variant == "gd")  # fmt: skip
    write_run(root / "failed", state="failed")
    return root


@pytest.fixture(scope="module")
def written(hostile, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out")
    assert cli([str(hostile), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def tab(written):
    if chromium.find() is None:
        pytest.skip(chromium.needed.kwargs["reason"])
    with chromium.browser() as opened:
        opened.open(written / "report.html", DRAWN)
        yield opened


def test_command_writes_everything_it_names_and_the_same_bytes_again(written, hostile, tmp_path, capsys):
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    assert {f"summary.{ending}" for ending in ("md", "tex", "csv")} <= names
    assert {"report.html", "scores.csv", "figures/along.finetune.lr_sim_aou.pdf"} <= names
    assert cli([str(hostile), "--out", str(tmp_path)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines() if line.startswith(str(tmp_path))]
    assert {path.relative_to(tmp_path).as_posix() for path in printed} == names
    for path in printed:
        assert path.read_bytes() == (written / path.relative_to(tmp_path)).read_bytes(), path.name


def test_nothing_to_report_is_an_error_with_a_remedy(tmp_path, caplog):
    write_run(tmp_path / "sweep" / "failed", state="failed")
    assert cli([str(tmp_path / "sweep")]) == 2
    assert "no finished run" in caplog.text and "is failed: ValueError: no such luck" in caplog.text
    assert cli([str(tmp_path / "nowhere")]) == 2
    write_run(tmp_path / "sweep" / "good")
    assert cli([str(tmp_path / "sweep"), "--export-records", str(tmp_path / "records")]) == 2
    assert "runtime.save_recordings=true" in caplog.text


def test_page_is_one_file_whose_policy_allows_its_own_scripts_alone(written):
    html = (written / "report.html").read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    assert re.findall(r"<script [^>]*>", html) == ['<script type="application/json" id="data">']  # nothing has a src
    assert set(re.findall(r"<[^>]+ (?:src|href|action)=[\"']([^\"'#]*)", html.split("<script")[0])) == {"data:,", ""}
    body = html.split("<body>")[1].split('<script type="application/json"')[0]
    assert "<img" not in body and "&lt;img src=x" in body and "\u202e" not in html and "\x00" not in html


def test_embedded_json_is_read_back_and_cannot_end_its_element():
    written = page.embedded({"text": HOSTILE})
    assert json.loads(written) == {"text": HOSTILE}
    assert written.isascii() and not set("<>&") & set(written)


def test_the_page_draws_the_very_specifications_of_files_and_wandb(written, hostile):
    results = Results.read([hostile])
    html = (written / "report.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])
    for packed, figure in zip(data["figures"], figures(results), strict=True):
        whole = figure.specification
        assert packed["spec"] == {k: v for k, v in whole.items() if k not in ("config", "datasets", "$schema")}
        rows = [dict(zip(packed["columns"], row, strict=True)) for row in zip(*packed["columns"].values(), strict=True)]
        assert rows == whole["datasets"]["rows"]


def test_browser_has_nothing_to_complain_of_and_asks_nobody(tab, written):
    assert tab.complaints() == []
    here = (written / "report.html").resolve().as_uri()
    assert [url for url in tab.requests() if not url.startswith(("data:", "blob:")) and url != here] == []


def test_policy_refuses_requests_and_scripts_that_are_not_the_pages_own(tab):
    listen = "addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective))"
    refused = f"new Promise((done) => {{{{ {listen}; {{}} }}}})"
    assert tab.evaluate(refused.format("fetch('https://example.com/').catch(() => 0)")) == "connect-src"
    inject = "document.body.append(Object.assign(document.createElement('script'), {text: 'window.pwned = 9'}))"
    assert tab.evaluate(refused.format(inject)) == "script-src-elem"
    assert tab.evaluate("window.pwned") is None
    tab.events.clear()  # the browser has said that it refused


def test_texts_from_outside_stay_texts(tab):
    shown = tab.evaluate("document.querySelector('#prompts .text').textContent")
    assert shown.startswith(
        "Sentence: <script>window.pwned=1</script></script><!-- \"'`{{7*7}}${1} ⟨U+202E⟩evil⟨U+2028⟩"
    )
    assert "⟨U+0000⟩⟨U+001B⟩" in shown
    assert tab.evaluate("window.pwned") is None
    assert tab.evaluate("document.querySelectorAll('main img, main iframe, #prompts script').length") == 0
    assert tab.evaluate("document.title") == "<b>sweep · iclgd"


def test_all_figures_are_drawn_at_once_and_follow_every_choice(tab):
    """Also those out of sight: a printed page lacked them."""
    titles = tab.evaluate("[...document.querySelectorAll('.figure h3')].map((h) => h.textContent)")
    expected = ["Mechanisms side by side", "Scores by layer", "Scores by learning rate"]
    expected += ["Scores by layer and learning rate", "Gradient norms (seed 0)"]
    assert titles == expected
    drawn = "[...document.querySelectorAll('.figure')].map((f) => f.querySelectorAll('svg.marks path').length > 3)"
    assert tab.evaluate(drawn) == [True] * 5
    tab.evaluate(
        "document.querySelectorAll('.choice select').forEach((s) => [...s.options].forEach((o) => "
        "{ s.value = o.value; s.dispatchEvent(new Event('change', {bubbles: true})); }))"
    )
    tab.evaluate("new Promise((done) => setTimeout(done, 1000))")
    assert tab.evaluate(drawn) == [True] * 5 and tab.complaints() == []
    captions = tab.evaluate("[...document.querySelectorAll('figcaption')].filter((c) => !c.hidden).length")
    assert captions == 5


def test_a_click_saves_the_data_and_the_specification_of_the_figure_that_is_shown(tab, hostile, tmp_path):
    tab.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    box = "document.querySelectorAll('.figure')[1]"
    tab.evaluate(f"{box}.querySelector('select').selectedIndex = 1")
    for ending in ("csv", "json"):
        tab.evaluate(f"{box}.querySelector('.get [value={ending}]').click()")
    figure = next(one for one in figures(Results.read([hostile])) if one.name == "layers/sim_am_delta")
    csv, spec = (tmp_path / f"{figure.file_name}.{ending}" for ending in ("csv", "json"))
    for _ in range(100):
        if csv.is_file() and spec.is_file():
            break
        time.sleep(0.05)
    assert json.loads(spec.read_text())["datasets"] == figure.specification["datasets"]
    rows = pd.read_csv(csv, keep_default_na=False).to_dict("records")
    expected = [{k: "" if v is None else v for k, v in row.items()} for row in figure.specification["datasets"]["rows"]]
    assert rows == expected


def test_paper_has_every_figure_and_every_column_in_dark_ink(tab):
    """Figures were drawn when they came into sight, and the widest table lost its last columns."""
    tab.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    ink = tab.evaluate(
        "getComputedStyle(document.body).color + getComputedStyle(document.querySelector('.plot svg')).filter"
    )
    cut = tab.evaluate(
        "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    )
    tab.send("Emulation.setEmulatedMedia", media="screen", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = tab.evaluate("getComputedStyle(document.querySelector('.plot svg')).filter")
    tab.send("Emulation.setEmulatedMedia", media="", features=[])
    assert (ink, cut, dark.split("(")[0]) == ("rgb(29, 35, 39)none", 0, "invert")


def test_runs_are_sorted_by_a_click_on_a_heading(tab):
    column = "[...document.querySelectorAll('#runs tbody tr')].map((r) => r.cells[{}].textContent)"
    heads = tab.evaluate("[...document.querySelectorAll('#runs th')].map((h) => h.textContent)")
    at = heads.index("lr")
    click = f"document.querySelectorAll('#runs th button')[{at}].click()"
    tab.evaluate(click)
    assert tab.evaluate(column.format(at)) == ["0.001"] * 2 + ["0.1"] * 2
    tab.evaluate(click)
    assert tab.evaluate(column.format(at)) == ["0.1"] * 2 + ["0.001"] * 2
    score = heads.index("SimAOU")
    tab.evaluate(f"document.querySelectorAll('#runs th button')[{score}].click()")
    shown = tab.evaluate(column.format(score))
    assert shown[-1] == "\N{EN DASH}" and shown[:-1] == sorted(shown[:-1], key=float)


def test_nothing_hangs_over_the_edge_of_a_phone(tab):
    tab.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    tab.evaluate("new Promise((done) => setTimeout(done, 300))")
    wide = tab.evaluate(
        "[...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, pre, .plot, details') && "
        "e.getBoundingClientRect().right > 391).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.send("Emulation.clearDeviceMetricsOverride")
