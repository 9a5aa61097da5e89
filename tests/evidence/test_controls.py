"""Controls with known answers: what the whole measurement says where theory says what it must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from configs import config
from iclgd.common.paths import config_folder
from iclgd.common.records import Evidence, PromptSet, Recording, Score, Trace
from iclgd.config import Config, ConfigError
from iclgd.evidence.gather import gather
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.metrics import measure, required_inputs
from iclgd.models.anatomy import LanguageModel
from iclgd.models.loading import load
from iclgd.runs.progress import Progress
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode
from linear_attention import LinearAttention, Regression

TOY = (
    *("model=toy", "task=toy", "task.queries=32", "finetune.other_task=toy_other"),
    *("runtime.cache=off", "runtime.device=cpu"),
)
SCORES = (
    "metric=[sim_aou,sim_aou_norm,sim_am,sim_am_delta,rec2ftp,update_norm_ratio,accuracy,label_agreement,"
    "sim_aou_reordered,sim_am_delta_reordered,weight_update_rank]"
)
VARIANTS = sorted(path.stem for path in (config_folder() / "finetune").glob("*.yaml"))


@dataclass(frozen=True)
class Measured:
    """A run of the toy without its files."""

    evidence: Evidence
    scores: Mapping[str, Score]
    prompts: PromptSet

    def mean(self, name: str) -> float:
        return self.scores[name].values.nanmean().item()


def prepared(*overrides: str) -> tuple[Config, LanguageModel, PromptSet]:
    run = config(*TOY, SCORES, *overrides)
    model = load(run.model, run.runtime)
    return run, model, encode(draw(run), run, model.tokenizer, model.window)


@cache
def toy(*overrides: str) -> Measured:
    run, model, prompts = prepared(*overrides)
    laboratory = Laboratory(model, prompts, run, required_inputs(run.metric.scores), Progress(), prepare(run))
    evidence = gather(laboratory)
    return Measured(evidence, measure(run.metric.scores, evidence), prompts)


def recorded(layers: list[torch.Tensor]) -> Recording:
    output = torch.stack(layers, dim=1)
    return Recording(output, torch.zeros(*output.shape[:2], 1, 1), torch.zeros(len(output), 1))


def linear_attention_scores(finetuning_rate: float, wrong_targets: bool = False) -> Mapping[str, Score]:
    """Three layers of linear attention that read 10 demonstrations, or are finetuned on them, for 20 queries."""
    noise = torch.Generator().manual_seed(7)
    draw_normal = lambda *shape: torch.randn(*shape, generator=noise, dtype=torch.float64)  # noqa: E731
    queries, settings = draw_normal(20, 6), {"zsl": [], "icl": [], "ft": []}
    for _ in range(3):
        layer = LinearAttention(0.3 * draw_normal(4, 6), rate=0.3)
        shown = Regression(draw_normal(10, 6), draw_normal(10, 4))
        trained_on = Regression(shown.inputs, -shown.targets) if wrong_targets else shown
        settings["zsl"].append(layer(queries))
        settings["icl"].append(layer(queries, shown))
        settings["ft"].append(layer.finetuned(trained_on, finetuning_rate)(queries))
    specs = config("metric=[sim_aou,sim_aou_norm,update_norm_ratio]").metric.scores
    nothing = Trace(torch.empty(0), torch.empty(0, 3), torch.zeros(3), torch.zeros(3))
    return measure(specs, Evidence({name: recorded(layers) for name, layers in settings.items()}, nothing))


def test_one_step_of_gd_is_what_linear_attention_does_in_context():
    scores = linear_attention_scores(finetuning_rate=0.3)
    assert all(scores[name].values.shape == (20, 3) for name in scores)
    for name in scores:
        torch.testing.assert_close(scores[name].values, torch.ones_like(scores[name].values), atol=1e-6, rtol=0)


def test_another_rate_keeps_the_direction_and_other_data_do_not():
    slower = linear_attention_scores(finetuning_rate=0.1)
    ones = torch.ones_like(slower["sim_aou"].values)
    torch.testing.assert_close(slower["sim_aou"].values, ones, atol=1e-6, rtol=0)
    torch.testing.assert_close(slower["update_norm_ratio"].values, ones / 3, atol=1e-6, rtol=0)
    assert (slower["sim_aou_norm"].values < 0.999).any()
    assert linear_attention_scores(0.3, wrong_targets=True)["sim_aou"].values.mean() < 0.5


def test_replayed_icl_scores_one_everywhere():
    found = toy("finetune=replay")
    for name in ("sim_aou", "sim_aou_norm", "sim_am", "sim_am_delta", "update_norm_ratio"):
        values = found.scores[name].values
        if name == "sim_am_delta":  # rotary: undefined in layer 0, whose scores do not depend on the context
            assert values[:, 0].isnan().all()
            values = values[:, 1:]
        assert not values.isnan().any(), name
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)
    assert found.mean("rec2ftp") == 1 and found.mean("label_agreement") == 1
    assert found.mean("accuracy/ft") == found.mean("accuracy/icl") > 0.95


def test_without_finetuning_no_update_has_a_direction():
    found = toy("finetune=none")
    for name in ("sim_aou", "sim_aou_norm", "sim_am_delta"):
        assert found.scores[name].values.isnan().all(), name
    assert found.scores["rec2ftp"].values.isnan().all()
    assert (found.scores["update_norm_ratio"].values == 0).all()
    assert torch.equal(found.scores["accuracy/ft"].values, found.scores["accuracy/zsl"].values)
    assert torch.equal(found.evidence.recordings["ft"].label_scores, found.evidence.recordings["zsl"].label_scores)


def test_random_directions_score_nothing_on_average():
    """One draw of directions may lie anywhere, the same way for all queries: only draws average out."""
    for name in ("sim_aou", "sim_am_delta"):
        means = torch.tensor([toy("finetune=random_direction", f"seed={seed}").mean(name) for seed in range(8)])
        assert means.std() > 0.05 and means.mean().abs() < 0.1, (name, means)


def test_trained_activations_are_the_ceiling():
    enough = "task.queries=100"  # it is trained on them
    best = toy("finetune=activation_match", enough)
    losses = best.evidence.trace.losses
    assert losses[-5:].mean() < losses[:5].mean() / 5
    assert best.mean("sim_aou") > 0.95 and best.mean("accuracy/ft") > 0.95
    for variant in ("gd", "lcgd"):
        for rate in (0.03, 0.3):
            other = toy(f"finetune={variant}", f"finetune.lr={rate}", enough)
            assert best.mean("sim_aou") > other.mean("sim_aou") + 0.3


def test_activation_match_is_refused_where_its_target_is_taken_elsewhere():
    with pytest.raises(ConfigError, match="last_prompt_token"):
        toy("finetune=activation_match", "protocol.record_at=first_label_token")


def test_the_noise_ceiling_is_icl_against_icl_in_another_order():
    found = toy("finetune=none")
    settings = found.evidence.recordings
    assert not torch.equal(settings["reordered"].attention_output, settings["icl"].attention_output)
    for name in ("sim_aou_reordered", "sim_am_delta_reordered"):
        assert 0.5 < found.mean(name) < 0.999


def test_controls_train_on_what_they_say():
    own, shuffled, other = (toy(f"finetune={name}").prompts for name in ("lcgd", "label_shuffled", "other_task"))
    assert own.training is None and shuffled.demonstrations == own.demonstrations == other.demonstrations
    assert shuffled.training is not None and other.training is not None
    pairs = list(zip(own.demonstrations, shuffled.training, strict=True))
    assert sorted(a.label for a, _ in pairs) == sorted(b.label for _, b in pairs)
    assert sum(a.label != b.label for a, b in pairs) > len(pairs) / 2
    assert all(a.token_ids[:-1] == b.token_ids[:-1] for a, b in pairs)
    assert {item.text.split()[-1] for item in other.training} == {"C", "D"}


def test_another_task_has_to_be_another():
    with pytest.raises(ConfigError, match="other_task"):
        toy("finetune=other_task", "finetune.other_task=toy")


@pytest.mark.parametrize("variant", ["gd", "lcgd", "full_batch", "adam", "low_rank", "lcgd_norm_matched"])
def test_training_lowers_its_loss(variant: str):
    rate = "0.01" if variant == "adam" else "0.1"
    losses = toy(f"finetune={variant}", "finetune.epochs=6", f"finetune.lr={rate}").evidence.trace.losses
    shown = len(losses) // 6
    assert losses[-shown:].mean() < losses[:shown].mean()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_on_the_toy_and_leaves_the_model_as_it_was(variant: str):
    run, model, _ = prepared(f"finetune={variant}")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    found = toy(f"finetune={variant}")
    assert run.finetune.name == variant and found.evidence.trace.diverged_at is None
    values = found.scores["sim_aou"].values
    if variant in ("exact_patch", "static_patch"):  # the attention of layer 0 lies below every change
        assert values[:, 0].isnan().all()
        values = values[:, 1:]
    if variant in ("task_vector", "function_vector"):  # they act behind one block
        values = values[:, -1:]
    assert values.isfinite().all() or variant in ("none", "short_circuit")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
