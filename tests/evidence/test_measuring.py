"""What a measurement must not depend on, and what it must say of itself: precision, bos, sanity, blind layers."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

from configs import config as config_of
from families.tiny import tiny_network as of_family
from iclgd.config import ConfigError
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Layer0
from iclgd.evidence.gather import gather, without_rounding
from iclgd.evidence.laboratory import Laboratory
from iclgd.evidence.preparation import prepare
from iclgd.mechanisms import objectives
from iclgd.mechanisms.finetuning import instability, suspicious
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.metrics.attention import sim_am_delta
from iclgd.metrics.updates import sim_aou
from iclgd.models.anatomy import UnsupportedModelError
from iclgd.models.attention_pass import AttentionPass
from iclgd.models.forward import encode_prefix, forward
from iclgd.models.loading import assemble
from iclgd.models.recorder import Question, RecordPlan, record
from iclgd.runs.progress import Progress
from learning_cases import finetuned, learning, prompts
from tiny_models import RECORDABLE, shared_model, tiny_model

BLIND = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "olmo2", "phi", "phi3"}
BLIND |= {"gpt_neox", "gptj", "bloom", "falcon"}


@pytest.mark.parametrize("family", RECORDABLE)
def test_whether_the_first_layer_sees_the_context_is_measured(family):
    blind = family.startswith(tuple(BLIND)) and not family.startswith("gpt_neo_")
    assert shared_model(family).first_layer_sees_context is not blind


@pytest.mark.parametrize(("family", "reading", "undefined"), [
    ("llama", Layer0.undefined, True), ("llama", Layer0.published, False), ("gpt2", Layer0.undefined, False),
])  # fmt: skip
def test_a_first_layer_that_cannot_see_the_context_has_no_change_of_scores(family, reading, undefined):
    model = shared_model(family)
    recorded = partial(
        record, model, [Question((11, 23, 35, 47, 59, 71), ((5,), (6, 7))), Question((36, 48, 60), ((5,), (6, 7)))]
    )
    plan = RecordPlan(bos=1)
    zsl, icl = recorded((1,), plan), recorded((1, *range(30, 43)), plan)
    with finetuned(model, prompts(), learning(lr=0.05)):
        ft = recorded((1,), plan)
    config = config_of("model=toy", "task=toy", f"protocol.layer0={reading}")
    lab = Laboratory(model, prompts(), config, set(), Progress(), prepare(config))
    far = replace(icl, attention_scores=icl.attention_scores * 1.01)
    recordings = without_rounding(lab, {"zsl": zsl, "icl": icl, "reordered": far})
    first_layers = [each.attention_scores[:, 0].nan_to_num() for each in (recordings["reordered"], zsl)]
    assert torch.equal(*first_layers) is undefined
    seen = recordings["icl"]
    values = sim_am_delta(seen.attention_scores, ft.attention_scores, zsl.attention_scores)
    assert bool(values[:, 0].isnan().all()) is undefined and values[:, 1:].isfinite().all()
    assert torch.equal(seen.attention_output, icl.attention_output), "only scores are blind"


def test_a_context_on_one_side_of_longropes_window_and_a_prompt_on_the_other_are_refused():
    config = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = tiny_model("phi3", rope_scaling=config, original_max_position_embeddings=16)
    prefix = encode_prefix(model, tuple(range(3, 13)))
    within = AttentionPass(lengths=torch.tensor([6]), prefix=prefix)
    forward(model, torch.arange(3, 9)[None], within)
    beyond = AttentionPass(lengths=torch.tensor([7]), prefix=prefix)
    with pytest.raises(UnsupportedModelError, match=r"window of 16 tokens: a context of 10 tokens .* ends at 17"):
        forward(model, torch.arange(3, 10)[None], beyond)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_random_directions_are_as_long_as_lcgd_in_every_matrix(family):
    model, changes = shared_model(family), {}
    for direction in ("own", "random"):
        trained = trained_parameters(model, learning().finetune.trainable, None)
        before = [item.parameter.detach().clone() for item in trained]
        with finetuned(model, _one(prompts()), learning(f"finetune.direction={direction}", objective="lcgd", lr=0.01)):
            changes[direction] = [
                matrix.norm().item()
                for item, start in zip(trained, before, strict=True)
                for matrix in item.matrices(item.part(item.parameter.detach() - start))
            ]
    assert len(changes["own"]) >= 2 * model.layers, "keys and values apart"
    assert changes["random"] == pytest.approx(changes["own"], rel=2e-3, abs=1e-6)


def _one(prompt_set):
    return replace(prompt_set, demonstrations=prompt_set.demonstrations[:1], in_context=(0,))


# --- sane runs


@pytest.mark.parametrize(("losses", "untouched", "unstable"), [
    ([6.3, 7.9, 6.2, 6.5, 11.9, 10.9, 15.7, 12.9, 11.4, 12.2, 12.3, 12.1], 6.0, True),  # SmolLM2, SST-2, gd 0.03
    ([2.43, 10.27, 10.25, 9.0, 8.0, 7.0, 5.5, 5.5], 2.5, True),  # the second step has broken it already
    ([1.0, 1.0, 1.5, 1.5], math.nan, False),
    ([0.3, 0.3, 2.0, 2.0], 2.0, False), ([1.0, 5.0, 9.0], math.nan, False), ([], math.nan, False),
])  # fmt: skip
def test_a_loss_that_ends_far_above_the_untouched_models_is_unstable(losses, untouched, unstable):
    assert suspicious(losses) is not math.isnan(untouched)
    reason = instability(torch.tensor(losses), untouched)
    assert (reason is not None) is unstable
    if unstable:
        assert "times that of the untouched model" in reason


def traced(monkeypatch, losses, factor):
    """The trace of four steps in which the untouched model has these losses, and a changed one `factor` times them."""
    model = shared_model("llama")
    key = trained_parameters(model, "k", [0])[0].parameter
    before, asked = key.detach().clone(), []

    def scripted(_model, sequence, _options):
        asked.append(sequence.demonstration)
        key.grad = torch.ones_like(key)
        return losses[sequence.demonstration] * (1.0 if torch.equal(key, before) else factor)

    monkeypatch.setitem(objectives._OBJECTIVES, "gd", scripted)
    with finetuned(model, prompts([(5, 6, 7)] * 4), learning("finetune.trainable=k", "finetune.layers=0-0")) as trace:
        changed = key.detach().clone()
    assert torch.equal(key, before) and torch.allclose(changed, before - 4 * 0.05)
    return trace, asked


@pytest.mark.parametrize(("losses", "factor", "asked", "unstable"), [
    ([2.4, 2.0, 2.2, 2.0], 0.7, 4, False),  # sane, and no pass too many
    ([0.3, 2.0, 0.3, 2.0], 1.0, 6, False),  # unequal demonstrations
    ([2.4, 2.0, 2.2, 2.0], 5.0, 6, True),
])  # fmt: skip
def test_a_suspicious_end_is_compared_with_the_untouched_model(losses, factor, asked, unstable, monkeypatch):
    trace, seen = traced(monkeypatch, losses, factor)
    assert len(seen) == asked and seen[4:] in ([], [2, 3])
    assert (
        math.isnan(trace.untouched_loss) if asked == 4 else trace.untouched_loss == pytest.approx(sum(losses[2:]) / 2)
    )
    assert (instability(trace.losses, trace.untouched_loss) is not None) is unstable


@pytest.mark.parametrize(
    ("family", "local", "reach"),
    [
        ("gemma3_text", "0,2", "to 6 tokens"),
        ("gpt_neo", "1,3", "to 6 tokens"),
        ("mistral", "0-2", "to 6 tokens"),
        ("llama4_text", "0,2", "within stretches of 6 tokens"),
    ],
)
def test_a_run_says_how_many_demonstrations_local_layers_see(family, local, reach):
    model = assemble(of_family(family), None) if family == "llama4_text" else shared_model(family)
    items, config = prompts(), config_of("model=toy", "task=toy")
    lab = Laboratory(model, items, config, set(), Progress(), prepare(config))
    plan = RecordPlan(bos=len(items.bos), optional=frozenset({"context_scores"}))
    scores = record(model, lab.questions(), items.context(), plan).context_scores
    counts = {layer: set() for layer in range(model.layers)}
    for layer in counts:
        for row in scores[:, layer]:
            counts[layer].add(sum(bool(row[start:end].isfinite().all()) for start, end in items.context_spans()))
    shots = len(items.in_context)
    hidden = [layer for layer, seen in counts.items() if min(seen) < shots]
    [note] = lab.window_notes()
    seen = set.union(*(counts[layer] for layer in hidden))
    assert f"layers {local} attend {reach}:" in note and hidden == list(parse_layers(local))
    span = f"{min(seen)} to {max(seen)}" if len(seen) > 1 else f"{min(seen)}"
    assert f"see {span} of {shots} demonstrations in whole" in note
    full = Laboratory(shared_model("llama"), items, config, set(), Progress(), lab.prepared)
    assert not list(full.window_notes())


def test_a_change_within_rounding_is_no_update():
    """Local layers whose windows are shorter than the query: the context reaches the upper layers only."""
    model = tiny_model("gemma3_text", num_hidden_layers=4, sliding_window=8, layer_types=["sliding_attention"] * 4)
    questions = [Question(tuple(range(start, start + 20)), ((5,), (6,))) for start in (20, 30, 40)]
    plan = RecordPlan(bos=1)
    zsl = record(model, questions, (1,), plan)
    icl = record(model, questions, (1, *range(60, 95)), plan)
    config = config_of("model=toy", "task=toy")
    lab = Laboratory(model, prompts(), config, set(), Progress(), prepare(config))
    assert not torch.equal(icl.attention_output[:, :2], zsl.attention_output[:, :2]), "rounding"
    seen = without_rounding(lab, {"zsl": zsl, "ft": icl})["ft"]
    assert torch.equal(seen.attention_output[:, :2], zsl.attention_output[:, :2])
    assert torch.equal(seen.attention_output[:, 2:], icl.attention_output[:, 2:])
    assert torch.equal(seen.attention_scores[:, :2].nan_to_num(), zsl.attention_scores[:, :2].nan_to_num())
    values = sim_aou(seen.attention_output, icl.attention_output, zsl.attention_output)
    assert values[:, :2].isnan().all() and values[:, 2:].isfinite().all()
    lost = replace(icl, attention_output=torch.full_like(icl.attention_output, torch.nan))
    lost = without_rounding(lab, {"zsl": zsl, "ft": lost})["ft"]
    assert lost.attention_output.isnan().all(), "what is undefined stays so"


@contextmanager
def yielding_nothing(_bench):
    """A mechanism of one's own that forgets its trace."""
    yield


def test_a_mechanism_without_a_trace_is_told_what_to_yield():
    run = learning(f"finetune.mechanism={__name__}.yielding_nothing")
    lab = Laboratory(shared_model("llama"), prompts(), run, set(), Progress(), prepare(run))
    with pytest.raises(ConfigError, match=r"finetune=\w+ yields None and not a trace: yield bench\.no_steps"):
        gather(lab)
