"""What happens when the window is too short, and that prompts.json comes back as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from encoding_cases import TAIL, TOKENIZER, choices, config_with, drawn_of, examples
from iclgd.common.records import PromptSet
from iclgd.config import ConfigError
from iclgd.config.enumerations import DropFrom, OnOverflow, RecordAt
from iclgd.tasks.draw import Drawn
from iclgd.tasks.encoding import encode
from iclgd.tasks.examples import DataError
from iclgd.tasks.notes import as_json
from task_cases import from_json


def needed_by(prompts: PromptSet, appended: int = 0) -> int:
    label = max(len(ids) for ids in prompts.label_token_ids)
    query = max(len(item.token_ids) for item in prompts.queries)
    return len(prompts.context()) + query + max(label - 1, appended)


def test_a_context_that_just_fits_is_left_alone_and_one_token_more_is_refused():
    whole = encode(drawn_of(), config_with(), TOKENIZER, None)
    window = needed_by(whole)
    assert encode(drawn_of(), config_with(), TOKENIZER, window) == whole
    said = (
        rf"task\.shots=4 needs {window} tokens but the model has {window - 1} positions; "
        r"lower task\.shots or set task\.on_overflow=drop"
    )
    with pytest.raises(ConfigError, match=said):
        encode(drawn_of(), config_with(), TOKENIZER, window - 1)
    large = drawn_of(demonstrations=examples(400, words=3))
    with pytest.raises(ConfigError, match=r"task\.shots=400 needs \d\d,\d{3} tokens but the model has 1,024 positions"):
        encode(large, config_with(), TOKENIZER, 1024)


def test_the_first_label_token_needs_a_place_where_the_record_is_taken_at_it():
    words = tuple(sorted(token[1:] for token in TOKENIZER.get_vocab() if len(token) == 2 and token[0] == "Ġ")[:2])
    drawn = drawn_of(label_words=words, demonstrations=examples(2, options=words), queries=examples(2, options=words))
    whole = encode(drawn, config_with(), TOKENIZER, None)
    assert max(len(ids) for ids in whole.label_token_ids) == 1
    config = config_with()
    encode(drawn, config, TOKENIZER, needed_by(whole))
    config.protocol.record_at = RecordAt.first_label_token
    with pytest.raises(ConfigError, match=rf"needs {needed_by(whole, appended=1)} tokens"):
        encode(drawn, config, TOKENIZER, needed_by(whole))
    encode(drawn, config, TOKENIZER, needed_by(whole, appended=1))


@pytest.mark.parametrize("drop_from", list(DropFrom))
def test_dropping_keeps_the_first_demonstrations_that_fit(drop_from: DropFrom, caplog: pytest.LogCaptureFixture):
    whole = encode(drawn_of(), config_with(), TOKENIZER, None)
    training = tuple(replace(each, label=1 - each.label) for each in examples(4))
    last = len(whole.demonstrations[3].token_ids) + len(whole.separator)
    for window, kept in ((needed_by(whole) - 1, 3), (needed_by(whole) - last, 3), (needed_by(whole) - last - 1, 2)):
        config = config_with(OnOverflow.drop, drop_from)
        prompts = encode(drawn_of(training=training), config, TOKENIZER, window)
        assert prompts.in_context == tuple(range(kept))
        assert needed_by(prompts) <= window
        left = 4 if drop_from is DropFrom.icl else kept
        assert prompts.demonstrations == whole.demonstrations[:left]
        assert len(prompts.training_items()) == left
        assert f"{kept} of 4 demonstrations fit into the model's {window} positions" in caplog.text
        assert ("ICL only" in caplog.text) == (drop_from is DropFrom.icl)


def test_dropping_stops_at_the_first_that_does_not_fit():
    long = replace(examples(4)[1], text=f"Thing: {'word ' * 40}{TAIL}")
    drawn = drawn_of(demonstrations=(examples(4)[0], long, *examples(4)[2:]))
    short = encode(drawn_of(), config_with(), TOKENIZER, None)
    prompts = encode(drawn, config_with(OnOverflow.drop), TOKENIZER, needed_by(short))
    assert prompts.in_context == (0,) and prompts.demonstrations == short.demonstrations[:1]


def test_what_cannot_fit_is_refused():
    whole = encode(drawn_of(), config_with(), TOKENIZER, None)
    query = needed_by(replace(whole, in_context=()))
    drop = config_with(OnOverflow.drop)
    with pytest.raises(ConfigError, match=rf"not even one demonstration fits .*{query} positions"):
        encode(drawn_of(), drop, TOKENIZER, query)
    with pytest.raises(
        DataError, match=rf"t\.jsonl, line 1: .* needs {query} tokens but the model has {query - 1} pos"
    ):
        encode(drawn_of(), drop, TOKENIZER, query - 1)
    huge = replace(examples(4)[3], text="long " * 300, where="t.jsonl, line 77")
    only_icl = config_with(OnOverflow.drop, DropFrom.icl)
    trained = drawn_of(demonstrations=(*examples(3), huge))
    with pytest.raises(DataError, match=r"t\.jsonl, line 77: this example alone needs .* has 200 positions"):
        encode(trained, only_icl, TOKENIZER, 200)
    assert len(encode(trained, drop, TOKENIZER, 200).demonstrations) == 3
    control = drawn_of(training=(huge,) * 4)
    with pytest.raises(DataError, match=r"line 77: this example alone needs"):
        encode(control, drop, TOKENIZER, 200)


ITEM = {"text", "token_ids", "label"}


def test_prompts_json_has_exactly_the_promised_keys():
    plain = as_json(encode(drawn_of(), config_with(), TOKENIZER, None))
    assert set(plain) == {"bos", "separator", "demonstrations", "queries", "label_words", "label_token_ids"}
    assert all(set(item) == ITEM for item in (*plain["demonstrations"], *plain["queries"]))
    own = as_json(encode(Drawn(choices(3), choices(2), ()), config_with(), TOKENIZER, None))
    assert set(own) == set(plain) and all(set(item) == {*ITEM, "options"} for item in own["queries"])


@pytest.mark.parametrize("kind", ["plain", "dropped", "choices", "control", "foreign", "empty separator"])
def test_prompts_json_comes_back_as_it_was(kind: str):
    config, drawn, window = config_with(), drawn_of(), None
    if kind == "dropped":
        config, window = config_with(OnOverflow.drop, DropFrom.icl), 90
    elif kind == "choices":
        drawn = Drawn(choices(3), choices(4), ())
    elif kind == "control":
        relabelled = tuple(replace(each, label=1 - each.label) for each in examples(4))
        drawn = drawn_of(training=relabelled)
    elif kind == "foreign":
        drawn = drawn_of(training=choices(4))
    elif kind == "empty separator":
        config = config_with(separator="", bos=None)
    prompts = encode(drawn, config, TOKENIZER, window)
    content = as_json(prompts)
    assert ("in_context" in content) == (kind == "dropped")
    assert ("training" in content) == (kind in ("control", "foreign"))
    assert from_json(json.loads(json.dumps(content, allow_nan=False))) == prompts
