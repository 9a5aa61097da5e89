"""Every recorded tensor of every family agrees with a naive reference that shares no code with the recorder."""

from functools import cache

import pytest
import torch

from iclgd.common.records import OPTIONAL_RECORDS, Item, PromptSet
from iclgd.models import recorder
from iclgd.models.recorder import Question, RecordPlan, record, token_queries
from iclgd.verify.naive import Naive
from learning_cases import learning
from recording_cases import CONTEXTS, LABELS, QUESTIONS, recorded
from tiny_models import RECORDABLE, shared_model, tiny_model, tiny_network

ALL_AT_ONCE = RecordPlan(optional=frozenset(OPTIONAL_RECORDS), bos=1)


@cache
def reference(family, context, record_at="last_prompt_token", dtype=torch.float32):
    return naive(family, dtype, record_at).record(CONTEXTS[context])


@cache
def naive(family, dtype=torch.float32, record_at="last_prompt_token"):
    queries = tuple(Item("", tokens, 0, options=options) for tokens, options in QUESTIONS)
    prompts = PromptSet((1,), (), (), queries, (), LABELS, ())
    return Naive(tiny_network(family).to(dtype), learning(f"protocol.record_at={record_at}"), prompts)


def test_greedy_answers_are_those_that_a_naive_loop_writes():
    plain, questions, context = naive("llama"), [], CONTEXTS["demonstrations"]
    for tokens, _ in QUESTIONS:
        written = [*context, *tokens]
        for _step in range(3):
            written.append(int(plain.run(written).logits[-1].argmax()))
        one, two, three = written[-3:]
        questions.append(Question(tokens, ((one,), (one, two, three), (one, (two + 1) % 90), ((one + 1) % 90,))))
    plan = RecordPlan(optional=frozenset({"option_is_greedy"}), batch_tokens=40)
    found = record(tiny_model("llama"), questions, context, plan).option_is_greedy
    assert found.tolist() == [[1, 1, 0, 0]] * len(QUESTIONS)


def assert_agree(found, expected, context, tolerance=1e-4, dtype=torch.float32):
    for name, wanted in expected.tensors().items():
        have = getattr(found, name)
        if name in ("context_scores", "context_mass") and not CONTEXTS[context]:
            assert have is None
            continue
        assert have.shape == wanted.shape, name
        assert have.dtype in (torch.float32, dtype)  # a recording is kept in float32 or better
        scale = wanted.nan_to_num().abs().max().item()
        torch.testing.assert_close(
            have,
            wanted,
            rtol=tolerance,
            atol=tolerance * scale,
            equal_nan=True,
            check_dtype=False,  # the reference is rounded to float32
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("family", RECORDABLE)
def test_agrees_with_the_naive_reference(family, context):
    for batch_tokens in (40, 1):  # together, and one at a time
        found = recorded(shared_model(family), context, batch_tokens=batch_tokens)
        assert_agree(found, reference(family, context), context)
        alone = recorded(shared_model(family), context, batch_tokens=batch_tokens, optional=frozenset())
        torch.testing.assert_close(alone.attention_scores, found.attention_scores, equal_nan=True)
    found = recorded(shared_model(family), context, at_first_label_token=True)
    assert_agree(found, reference(family, context, "first_label_token"), context)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "gpt_neo", "bloom", "falcon"])
def test_agrees_in_float64(family):
    context = "demonstrations"
    found = recorded(shared_model(family, torch.float64), context)
    assert_agree(found, reference(family, context, dtype=torch.float64), context, 1e-5, torch.float64)


@pytest.mark.parametrize("family", RECORDABLE)
def test_queries_at_every_token_agree(family):
    sequences = [tokens for tokens, _ in QUESTIONS]
    found = token_queries(shared_model(family), sequences, (1,))
    for tokens, vectors in zip(sequences, found, strict=True):
        seen = naive(family).run((1, *tokens))
        expected = torch.stack([queries.transpose(0, 1).flatten(1)[1:] for queries in seen.queries], dim=1)
        torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_alibi_does_not_depend_on_how_long_the_context_is():
    """A query's own scores have the same biases whatever stands before it, since their distances are the same."""
    torch.manual_seed(0)
    model = tiny_model("bloom")
    for block in model.anatomy.blocks:
        block.self_attention.query_key_value.weight.data.zero_()
        block.self_attention.query_key_value.bias.data.zero_()
    short, long = recorded(model, "nothing before"), recorded(model, "demonstrations")
    torch.testing.assert_close(short.attention_scores, long.attention_scores, equal_nan=True)
    slopes = torch.tensor([2**-2.0, 2**-4.0, 2**-6.0, 2**-8.0])
    expected = -slopes[:, None] * torch.tensor([2.0, 1.0, 0.0])
    torch.testing.assert_close(short.attention_scores[1, 0, :, :3], expected)


def test_running_out_of_memory_halves_the_batch(monkeypatch):
    family, context = "llama", "demonstrations"
    original, sizes = recorder._run_batch, []

    def run(model, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("too much")
        original(model, batch, *rest)

    monkeypatch.setattr(recorder, "_run_batch", run)
    done = []
    found = record(
        shared_model(family), [Question(*q) for q in QUESTIONS], CONTEXTS[context], ALL_AT_ONCE, advance=done.append
    )
    assert_agree(found, reference(family, context), context)
    assert max(sizes) > 2 and sum(done) == len(QUESTIONS)

    def broken(*_):
        raise RuntimeError("another error")

    monkeypatch.setattr(recorder, "_run_batch", broken)
    with pytest.raises(RuntimeError, match="another error"):
        recorded(shared_model(family), context)


def test_labels_are_scored_by_the_mean_or_the_sum():
    model, context = shared_model("llama"), "bos"
    mean, total = (recorded(model, context, mean_label=mean).label_scores for mean in (True, False))
    lengths = torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 2, 3], [2, 1, torch.nan]])
    torch.testing.assert_close(total, mean * lengths, equal_nan=True)


def test_labels_that_all_have_several_tokens_may_come_in_any_batches():
    model = shared_model("llama")
    questions = [Question((5, 6, 7), ((11, 12), (13, 14, 15))), Question((8, 9), ((11, 12), (13, 14, 15)))]
    whole, single = (record(model, questions, (1,), RecordPlan(batch_tokens=n)) for n in (1000, 1))
    assert whole.label_scores.isfinite().all()
    torch.testing.assert_close(single.label_scores, whole.label_scores, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.attention_output, whole.attention_output, rtol=1e-5, atol=1e-5)
