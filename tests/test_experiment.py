"""A whole run: its files, that its numbers follow from them, and what does and does not change them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from configs import config
from iclgd import experiment
from iclgd.config import ConfigError, RuntimeConfig
from iclgd.evidence.reference import orders
from iclgd.models.loading import load
from iclgd.runs.folder import RunFolder
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode

SMALL = ("model=toy", "task=toy", "tracking=none", "task.queries=10", "runtime.cache=off")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICLGD_CACHE_DIR", str(tmp_path / "cache"))


def run(path: Path, *overrides: str) -> tuple[dict, Path]:
    settings = config(*SMALL, *overrides)
    folder = RunFolder(path)
    folder.start("test")
    return experiment.run(settings, folder), path


@pytest.mark.parametrize(("weights", "wanted", "used"), [(0.001, None, 1), (0.5, None, 3), (0.001, 2, 2), (0.5, 2, 2)])
def test_a_small_model_has_one_thread_and_the_next_run_those_that_were(weights, wanted, used, monkeypatch):
    threads = [3]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    with experiment._threads(RuntimeConfig(threads=wanted), weights):
        assert threads[-1] == used
    assert threads[-1] == 3


@pytest.mark.parametrize(("variant", "wanted"), [("exact_patch", set()), ("gd", {"trained_changes"})])
def test_patches_of_whole_matrices_are_refused_where_weights_may_lie_elsewhere(variant, wanted):
    with pytest.raises(ConfigError, match=r"set runtime\.placement=single"):
        experiment._refuse_early(config(*SMALL, f"finetune={variant}", "runtime.placement=auto"), wanted)


def test_scores_follow_from_the_recordings(tmp_path: Path) -> None:
    scores, folder = run(tmp_path / "run", "finetune=lcgd", "runtime.save_recordings=true")
    stored = load_file(folder / "recordings.safetensors")
    h = {name: stored[f"{name}.attention_output"].double() for name in ("zsl", "icl", "ft")}
    m = {name: stored[f"{name}.attention_scores"].double() for name in ("zsl", "icl", "ft")}
    by_layer = functional.cosine_similarity(h["icl"] - h["zsl"], h["ft"] - h["zsl"], dim=-1).mean(0)
    assert scores["sim_aou"]["layers"] == pytest.approx(by_layer.tolist(), abs=1e-6)
    assert scores["sim_aou"]["mean"] == pytest.approx(by_layer.mean().item(), abs=1e-6)
    assert scores["sim_am_delta"]["layers"][0] is None  # rotary: what layer 0 scores does not depend on the context
    delta = [torch.nan_to_num(m[name] - m["zsl"]) for name in ("icl", "ft")]
    heads = functional.cosine_similarity(*delta, dim=-1)
    assert scores["sim_am_delta"]["mean"] == pytest.approx(heads[:, 1:].nanmean(-1).nanmean(0).mean().item(), abs=1e-6)
    prompts = json.loads((folder / "prompts.json").read_text())
    labels = torch.tensor([query["label"] for query in prompts["queries"]])
    for name in ("zsl", "icl", "ft"):
        right = stored[f"{name}.label_scores"].argmax(-1) == labels
        assert scores[f"accuracy/{name}"]["mean"] == pytest.approx(right.float().mean().item())
    assert set(prompts) >= {"bos", "separator", "demonstrations", "queries", "label_words", "label_token_ids"}


def test_the_folder_holds_what_others_read(tmp_path: Path) -> None:
    scores, folder = run(tmp_path / "run", "finetune=gd")
    assert json.loads((folder / "scores.json").read_text()) == scores
    frame = pd.read_parquet(folder / "scores.parquet")
    assert list(frame.columns) == ["score", "example", "layer", "value"]
    mean = frame[frame.score == "sim_aou"].groupby("layer").value.mean().mean()
    assert mean == pytest.approx(scores["sim_aou"]["mean"], abs=1e-6)
    norms = pd.read_parquet(folder / "gradient_norms.parquet")
    assert {"demonstration", "layer", "value"} <= set(norms.columns)
    assert len(norms) == 12 * len(scores["sim_aou"]["layers"])
    assert norms.value.mean() == pytest.approx(scores["gradient_norm"]["mean"], rel=1e-5)
    assert not (folder / "figures").exists()
    assert {"sim_aou_norm", "sim_aou_random", "sim_am", "sim_am_zsl", "rec2ftp"} <= set(scores)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["device"]["name"] == "cpu" and environment["dtype"] == "float32"
    assert all(len(digest) == 64 for digest in environment["model_files"].values())


def test_batching_changes_rounding_only(tmp_path: Path) -> None:
    one, _ = run(tmp_path / "one", "finetune=lcgd")
    other, _ = run(tmp_path / "other", "finetune=lcgd", "runtime.save_recordings=true", "runtime.batch_tokens=16")
    assert all(one[f"accuracy/{s}"] == other[f"accuracy/{s}"] for s in ("zsl", "icl", "ft"))
    for name in ("sim_aou", "sim_am_delta"):
        assert other[name]["mean"] == pytest.approx(one[name]["mean"], abs=1e-4)


def test_every_score_there_is(tmp_path: Path) -> None:
    from iclgd.common.paths import config_folder

    names = sorted(path.stem for path in (config_folder() / "metric").glob("*.yaml"))
    scores, folder = run(
        tmp_path / "run",
        "finetune=lcgd",
        f"metric=[{','.join(names)}]",
        "metric.compare_with=gd",
        "metric.orders=2",
    )
    undefined = {name for name, entry in scores.items() if "mean" in entry and entry["mean"] is None}
    few_tokens = {"rec2ftp", "recall_top_tokens", "recall_top_tokens_random"}  # fewer than 100 tokens here
    of_mlp = {"weight_cosine", "weight_norm_explained", "weight_principal_angles"}  # which lcgd does not train
    unmoved = {name for name in scores if name.endswith("as_icl")}  # ICL moves by less than .01 here
    assert undefined <= few_tokens | of_mlp | unmoved
    assert -1 <= scores["alpha"]["mean"] <= 1
    updates = pd.read_parquet(folder / "weight_updates.parquet")
    assert (updates["norm"] > 0).all()


def test_alpha_compares_with_the_other_variant_as_it_trains_itself(tmp_path: Path) -> None:
    """Its own data and rate: comparing a with b and b with a is the same, and a with itself is one."""
    alpha = {}
    for one, other in (("lcgd", "label_shuffled"), ("label_shuffled", "lcgd")):
        scores, _ = run(tmp_path / one, f"finetune={one}", "metric=[alpha]", f"metric.compare_with={other}")
        alpha[one] = scores["alpha"]["mean"]
    assert alpha["lcgd"] == pytest.approx(alpha["label_shuffled"], abs=1e-5) and alpha["lcgd"] < 0.99
    itself, _ = run(tmp_path / "gd", "finetune=gd", "metric=[alpha]", "metric.compare_with=gd")
    assert itself["alpha"]["mean"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("shots", "many"), [(1, 1), (2, 2), (3, 5)])
def test_orders_of_few_demonstrations_are_no_two_alike(tmp_path: Path, shots: int, many: int) -> None:
    settings = config(*SMALL, f"task.shots={shots}", "metric=[sim_aou_reordered,order_spread]")
    model = load(settings.model, settings.runtime)
    prompts = encode(draw(settings), settings, model.tokenizer, model.window)
    chosen = orders(prompts, settings)
    assert len({order.in_context for order in chosen}) == len(chosen) == many
    scores, _ = run(tmp_path / "run", f"task.shots={shots}", "metric=[sim_aou_reordered,order_spread]")
    mean = scores["sim_aou_reordered"]["mean"]
    assert mean is None if shots == 1 else mean < 1 - 1e-6  # ICL against itself would be 1


def test_divergence_is_said_and_undefined(tmp_path: Path) -> None:
    wanted = "metric=[sim_aou,sim_am_zsl,accuracy,attention_kendall,total_variation]"
    scores, folder = run(tmp_path / "run", "finetune=gd", "finetune.lr=1e30", "finetune.trainable=all", wanted)
    status = json.loads((folder / "status.json").read_text())
    assert status["diverged"] is True and status["diverged_at"] >= 1
    assert scores["sim_aou"]["undefined"] == 10 * len(scores["sim_am_zsl"]["layers"])
    for name in ("sim_aou", "accuracy/ft", "attention_kendall", "total_variation"):
        assert scores[name]["mean"] is None, "every score that needs what diverged"
    assert scores["sim_am_zsl"]["mean"] is not None and scores["accuracy/icl"]["mean"] is not None


def test_a_rate_that_breaks_the_model_at_once_is_unstable(tmp_path: Path) -> None:
    _, folder = run(tmp_path / "run", "finetune=gd", "finetune.lr=1000", "task.shots=16")
    status = json.loads((folder / "status.json").read_text())
    losses = pd.read_parquet(folder / "losses.parquet")["loss"]
    assert losses[1] > 3 * losses[0] and losses[12:].mean() < 1.5 * losses[:2].mean(), "broken by the first step"
    assert status["diverged"] is False and status["unstable"] is True
    assert "times that of the untouched model" in status["unstable_because"]


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("finetune.layers=[0,99]", "finetune.layers"),
        ("runtime.device=cuda:7", "runtime.device"),
        ("metric.compare_with=nothing", "metric.compare_with"),
    ],
)
def test_bad_settings_name_their_key(tmp_path: Path, override: str, named: str) -> None:
    metric = ("metric=[alpha]",) if "compare" in override else ()
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        run(tmp_path / "run", "finetune=gd", *metric, override)
