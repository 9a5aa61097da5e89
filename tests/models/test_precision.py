"""Half precision: what is recorded and learned is that of single precision but for rounding."""

import pytest
import torch

from iclgd.mechanisms.objectives import _UnembeddedLoss
from learning_cases import finetuned, learning, prompts
from recording_cases import recorded
from tiny_models import RECORDABLE, shared_model

IN_FLOAT16 = ("llama", "gemma2", "gpt_neox", "xglm", "gpt_neo", "falcon")
HALVES = {torch.bfloat16: 0.1, torch.float16: 0.02}


def assert_near(found, expected, tolerance):
    assert found.dtype is torch.float32
    assert torch.equal(found.isnan(), expected.isnan())
    error = (found - expected).nan_to_num().norm() / expected.nan_to_num().norm()
    assert error < tolerance


@pytest.mark.parametrize(
    ("family", "dtype"),
    [(family, torch.bfloat16) for family in RECORDABLE] + [(family, torch.float16) for family in IN_FLOAT16],
)
def test_records_of_half_precision(family, dtype):
    exact = recorded(shared_model(family), "demonstrations")
    found = recorded(shared_model(family, dtype), "demonstrations")
    for name in ("attention_output", "attention_scores", "label_scores", "query_vectors", "next_token_log_probs"):
        assert_near(getattr(found, name), getattr(exact, name), HALVES[dtype])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("objective", ["gd", "lcgd"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "xglm", "bloom", "gemma2"])
def test_learning_in_half_precision(family, objective, dtype):
    traces = []
    for model in (shared_model(family), shared_model(family, dtype)):
        with finetuned(model, prompts(), learning(objective=objective, lr=0.05)) as trace:
            traces.append(trace)
    exact, found = traces
    assert_near(found.losses, exact.losses, 0.05)
    assert_near(found.gradient_norms, exact.gradient_norms, 2 * HALVES[dtype])


def test_a_model_in_half_precision_says_what_that_does():
    for dtype in HALVES:
        (note,) = (note for note in shared_model("llama", dtype).notes if note.startswith("measured in "))
        assert note.startswith(f"measured in {str(dtype)[6:]}: ") and "26 to 30 % from float32's" in note
    assert not any("measured" in note for note in shared_model("llama").notes)


@pytest.mark.parametrize("dtype", HALVES)
def test_steps_too_small_for_half_precision_add_up(dtype):
    """Sixty of them, each below half a unit in the last place of a weight, move it as far as in float32."""
    texts = ((11, 23, 35, 47, 59),) * 60
    changes = []
    for model in (shared_model("llama"), shared_model("llama", dtype)):
        weight = model.network.model.layers[0].self_attn.v_proj.weight
        before = weight.detach().float().clone()
        with finetuned(model, prompts(texts), learning(lr=1e-3)):
            changes.append((weight.detach().float() - before).flatten())
    exact, found = changes
    assert torch.cosine_similarity(exact, found, dim=0) > 0.9
    assert 0.8 < found.norm() / exact.norm() < 1.25


def test_losses_in_bfloat16_are_never_negative():
    torch.manual_seed(0)
    weight = torch.randn(2000, 64).bfloat16()
    targets = torch.arange(40)
    losses = [
        _UnembeddedLoss.apply(4 * weight[i : i + 1], weight, None, None, targets[i : i + 1]).item() for i in range(40)
    ]
    assert min(losses) >= 0
