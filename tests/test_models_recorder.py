"""Every recorded tensor of every family agrees with a naive reference that shares no code with the recorder."""

from functools import cache

import pytest
import torch

from iclgd.config import Padding
from iclgd.models import Question, RecordPlan, record
from iclgd.records import OPTIONAL_RECORDS
from naive import naive_recording
from tiny_models import RECORDABLE, tiny_model, tiny_network

LABELS = ((5,), (6, 7), (6, 8, 9))
QUESTIONS = (
    ((11, 23, 35, 47, 59, 71, 83, 12, 24), LABELS),
    ((36, 48, 60), LABELS),
    ((13, 25, 37, 49, 61, 73), LABELS),
    ((14, 26, 38), ((40, 41), (42,))),
)
CONTEXTS = {"nothing before": (), "bos": (1,), "demonstrations": (1, *range(30, 43))}
ALL = RecordPlan(optional=frozenset(OPTIONAL_RECORDS), batch_tokens=40)


@cache
def reference(family, context, at_first_label_token=False, dtype=torch.float32):
    network = tiny_network(family).to(dtype)
    return naive_recording(network, QUESTIONS, CONTEXTS[context], at_first_label_token)


@cache
def model_of(family, dtype=torch.float32):
    return tiny_model(family, dtype=dtype)


def recorded(model, context, **plan):
    plan = RecordPlan(**{**vars(ALL), **plan})
    return record(model, [Question(*question) for question in QUESTIONS], CONTEXTS[context], plan)


def assert_agree(found, expected, context, tolerance=1e-4):
    for name, wanted in expected.items():
        have = getattr(found, name)
        if name == "context_scores" and not CONTEXTS[context]:
            assert have is None
            continue
        assert have.shape == wanted.shape, name
        assert have.dtype == torch.float32
        scale = wanted.nan_to_num().abs().max().item()
        torch.testing.assert_close(
            have,
            wanted,
            rtol=tolerance,
            atol=tolerance * scale,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", RECORDABLE)
def test_agrees_with_the_naive_reference(family, context):
    for padding in Padding:
        assert_agree(recorded(model_of(family), context, padding=padding), reference(family, context), context)


@pytest.mark.parametrize("family", RECORDABLE)
def test_agrees_at_the_first_label_token(family):
    context = "demonstrations"
    expected = reference(family, context, True)
    found = recorded(model_of(family), context, at_first_label_token=True)
    assert_agree(found, expected, context)
    plain = recorded(model_of(family), context)
    assert found.attention_scores.shape[-1] == plain.attention_scores.shape[-1] + 1
    assert not torch.allclose(found.attention_output, plain.attention_output, atol=1e-2)
    torch.testing.assert_close(found.label_scores, plain.label_scores, equal_nan=True)


@pytest.mark.parametrize("family", RECORDABLE)
def test_agrees_in_float64(family):
    context = "demonstrations"
    found = recorded(model_of(family, torch.float64), context)
    assert_agree(found, reference(family, context, dtype=torch.float64), context, tolerance=1e-5)
