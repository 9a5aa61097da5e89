"""Controls with known answers: what the whole measurement says where theory says what it must."""

from __future__ import annotations

import pytest
import torch

import toy_runs
from configs import config
from iclgd.common.paths import config_folder
from iclgd.common.records import Evidence, Recording, Trace
from iclgd.config import ConfigError
from iclgd.metrics import measure
from linear_attention import LinearAttention, Regression
from toy_runs import laboratory

SCORES = (
    "metric=[sim_aou,sim_aou_norm,sim_am,sim_am_delta,rec2ftp,update_norm_ratio,accuracy,label_agreement,"
    "sim_aou_reordered,sim_am_delta_reordered]"
)
VARIANTS = sorted(path.stem for path in (config_folder() / "finetune").glob("*.yaml"))


def scores(*overrides: str) -> dict[str, torch.Tensor]:
    return toy_runs.scores("task.queries=32", SCORES, *overrides)


def evidence(*overrides: str) -> Evidence:
    return toy_runs.evidence("task.queries=32", SCORES, *overrides)


def mean(name: str, *overrides: str) -> float:
    return scores(*overrides)[name].nanmean().item()


def recorded(layers: list[torch.Tensor]) -> Recording:
    output = torch.stack(layers, dim=1)
    return Recording(output, torch.zeros(*output.shape[:2], 1, 1), torch.zeros(len(output), 1))


def linear_attention_scores(finetuning_rate: float, wrong_targets: bool = False) -> dict[str, torch.Tensor]:
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
    recordings = {name: recorded(layers) for name, layers in settings.items()}
    return {name: score.values for name, score in measure(specs, Evidence(recordings, Trace.without_steps(3))).items()}


def test_one_step_of_gd_is_what_linear_attention_does_in_context():
    for values in linear_attention_scores(finetuning_rate=0.3).values():
        torch.testing.assert_close(values, torch.ones(20, 3, dtype=values.dtype), atol=1e-6, rtol=0)


def test_another_rate_keeps_the_direction_and_other_data_do_not():
    slower = linear_attention_scores(finetuning_rate=0.1)
    ones = torch.ones_like(slower["sim_aou"])
    torch.testing.assert_close(slower["sim_aou"], ones, atol=1e-6, rtol=0)
    torch.testing.assert_close(slower["update_norm_ratio"], ones / 3, atol=1e-6, rtol=0)
    assert (slower["sim_aou_norm"] < 0.999).any()
    assert linear_attention_scores(0.3, wrong_targets=True)["sim_aou"].mean() < 0.5


def test_replayed_icl_scores_one_everywhere():
    replayed = scores("finetune=replay")
    for name in ("sim_aou", "sim_aou_norm", "sim_am", "sim_am_delta", "update_norm_ratio"):
        values = replayed[name]
        if name == "sim_am_delta":  # rotary: undefined in layer 0, whose scores do not depend on the context
            assert values[:, 0].isnan().all()
            values = values[:, 1:]
        torch.testing.assert_close(values, torch.ones_like(values), atol=1e-5, rtol=0)
    assert mean("rec2ftp", "finetune=replay") == 1 and mean("label_agreement", "finetune=replay") == 1
    assert mean("accuracy/ft", "finetune=replay") == mean("accuracy/icl", "finetune=replay") > 0.95


def test_without_finetuning_no_update_has_a_direction():
    values, recordings = scores("finetune=none"), evidence("finetune=none").recordings
    assert all(values[name].isnan().all() for name in ("sim_aou", "sim_aou_norm", "sim_am_delta", "rec2ftp"))
    assert (values["update_norm_ratio"] == 0).all()
    assert torch.equal(recordings["ft"].label_scores, recordings["zsl"].label_scores)


def test_random_directions_score_nothing_on_average():
    """One draw of directions may lie anywhere, the same way for all queries: only draws average out."""
    for name in ("sim_aou", "sim_am_delta"):
        means = torch.tensor([mean(name, "finetune=random_direction", f"seed={seed}") for seed in range(8)])
        assert means.std() > 0.05 and means.mean().abs() < 0.1, (name, means)


def test_trained_activations_are_the_ceiling():
    best = ("finetune=activation_match", "task.queries=100")  # it is trained on them
    losses = evidence(*best).trace.losses
    assert losses[-5:].mean() < losses[:5].mean() / 5
    assert mean("sim_aou", *best) > 0.95 and mean("accuracy/ft", *best) > 0.95
    for variant in ("gd", "lcgd"):
        for rate in (0.03, 0.3):
            other = mean("sim_aou", f"finetune={variant}", f"finetune.lr={rate}", "task.queries=100")
            assert mean("sim_aou", *best) > other + 0.3


def test_activation_match_is_refused_where_its_target_is_taken_elsewhere():
    with pytest.raises(ConfigError, match="last_prompt_token"):
        evidence("finetune=activation_match", "protocol.record_at=first_label_token")


def test_the_noise_ceiling_is_icl_against_icl_in_another_order():
    recordings = evidence("finetune=none").recordings
    assert not torch.equal(recordings["reordered"].attention_output, recordings["icl"].attention_output)
    for name in ("sim_aou_reordered", "sim_am_delta_reordered"):
        assert 0.5 < mean(name, "finetune=none") < 0.999


def test_controls_train_on_what_they_say():
    own, shuffled, other = (laboratory(f"finetune={name}").prompts for name in ("lcgd", "label_shuffled", "other_task"))
    assert own.training is None and shuffled.demonstrations == own.demonstrations == other.demonstrations
    assert shuffled.training is not None and other.training is not None
    pairs = list(zip(own.demonstrations, shuffled.training, strict=True))
    assert sorted(a.label for a, _ in pairs) == sorted(b.label for _, b in pairs)
    assert sum(a.label != b.label for a, b in pairs) > len(pairs) / 2
    assert all(a.token_ids[:-1] == b.token_ids[:-1] for a, b in pairs)
    assert {item.text.split()[-1] for item in other.training} == {"C", "D"}
    with pytest.raises(ConfigError, match="other_task"):
        laboratory("finetune=other_task", "finetune.other_task=toy")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_on_the_toy(variant: str):
    values = scores(f"finetune={variant}")["sim_aou"]
    assert evidence(f"finetune={variant}").trace.diverged_at is None
    if variant in ("exact_patch", "static_patch"):  # the attention of layer 0 lies below every change
        assert values[:, 0].isnan().all()
        values = values[:, 1:]
    if variant in ("task_vector", "function_vector"):  # they act behind one block
        values = values[:, -1:]
    assert values.isfinite().all() or variant in ("none", "short_circuit")
