"""Faults that cross several rooms: memory runs out in a run, a stranger's text travels from its file to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from configs import config
from iclgd import experiment
from iclgd.models import recorder
from iclgd.report.__main__ import cli
from iclgd.runs.execute import Ending, execute
from iclgd.runs.folder import RunFolder, State

CHEAP = ("model=toy", "task=toy", "tracking=none", "task.shots=2", "metric=[sim_aou,accuracy]")
FULL = 2**50  # bytes: more than any machine has, so that the allocator itself says no

HOSTILE = (
    "{0} {__class__} {text} {{7*7}} ${1}",
    "<script>window.pwned=1</script></script><!-- <img src=x onerror=window.pwned=2>",
    "\u202eevil\u2028\u2029\x00\x1b[31m\x07 \ufeff",
    "\\input{/etc/passwd} $x$ % & _ # ~ ^",
    "cat <s> </s> <|endoftext|> [bold]red[/]",
    "\ud83d half a pair",
    "=1+1\r\nfox\t| a | b |",
    "otter " * 9,
)
WORDS = "goose lynx wrench anvil spade pliers " * 2  # of the model's vocabulary; too many others are refused


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path / "cache"))


def out_of_memory_beyond(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = recorder._run_batch

    def run(model, probes, *rest):
        if len(probes) > batch:
            torch.empty(FULL, dtype=torch.uint8)
        original(model, probes, *rest)

    monkeypatch.setattr(recorder, "_run_batch", run)


def test_a_run_short_of_memory_takes_smaller_batches_and_says_so(tmp_path, monkeypatch):
    settings = config(*CHEAP, "task.queries=6", "runtime.cache=off")
    assert execute(settings, tmp_path / "ample", experiment.run).ending is Ending.done
    out_of_memory_beyond(1, monkeypatch)
    assert execute(settings, tmp_path / "scarce", experiment.run).ending is Ending.done
    ample, scarce = (RunFolder(tmp_path / name).read_json("scores.json") for name in ("ample", "scarce"))
    assert scarce["accuracy/icl"] == ample["accuracy/icl"]
    assert scarce["sim_aou"]["layers"] == pytest.approx(ample["sim_aou"]["layers"], abs=1e-5)
    quiet, told = ((tmp_path / name / "run.log").read_text() for name in ("ample", "scarce"))
    assert "out of memory: a batch of 6 is halved, and later ones; runtime.batch_tokens=" in told
    assert "out of memory" not in quiet


def test_a_run_that_never_fits_fails_clearly_and_the_next_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as scarce:
        out_of_memory_beyond(0, scarce)
        failed = execute(config(*CHEAP, "task.queries=2", "seed=0"), tmp_path / "0", experiment.run)
    assert failed.ending is Ending.failed and "allocate" in failed.message
    assert RunFolder(tmp_path / "0").state() is State.failed
    following = execute(config(*CHEAP, "task.queries=2", "seed=1"), tmp_path / "1", experiment.run)
    assert following.ending is Ending.done
    again = execute(config(*CHEAP, "task.queries=2", "seed=0"), tmp_path / "0", experiment.run)
    assert again.ending is Ending.done


def test_a_strangers_text_travels_from_its_file_to_the_report_as_text(tmp_path, capsys):
    data = tmp_path / "data" / "toy"
    data.mkdir(parents=True)
    texts = [f"{text} {WORDS}" for text in HOSTILE]
    rows = [json.dumps({"text": text, "label": i % 2}) for i, text in enumerate(texts)]
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("\r\n".join(rows), encoding="utf-8-sig")
    overrides = ("task.source=hub", f"paths.data_dir={data.parent}", "task.on_overflow=drop")
    settings = config(*CHEAP, *overrides, "task.queries=8")
    outcome = execute(settings, tmp_path / "sweep" / "run", experiment.run)
    assert outcome.ending is Ending.done, outcome.message
    prompts = json.loads((outcome.folder / "prompts.json").read_text())
    queries = {item["text"] for item in prompts["queries"]}
    assert {f"{text} ->" for text in texts[:5]} <= queries
    assert cli([str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]) == 0
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<script>window.pwned" not in html and "<img src=x" not in html
    assert "{0} {__class__} {text} {{7*7}} ${1}" in html
    assert not {"\x00", "\x1b", "\u202e"} & set(html)
    assert "\x1b[31m" not in capsys.readouterr().out
