"""Token ids: labels the same everywhere, and nothing special out of data."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from encoding_cases import LABELS, TAIL, TOKENIZER, choices, config_with, drawn_of, examples, ids_of, wrapped
from iclgd.common.records import PromptSet
from iclgd.config import ConfigError
from iclgd.config.enumerations import DropFrom, OnOverflow, RecordAt
from iclgd.tasks.draw import Drawn
from iclgd.tasks.encoding import encode
from iclgd.tasks.examples import DataError, Example
from iclgd.tasks.notes import as_json
from tiny import SENTENCES, tiny_tokenizer


def test_sequences_are_put_together_as_the_run_folder_promises():
    prompts = encode(drawn_of(), config_with(), TOKENIZER, window=None)
    bos, separator = TOKENIZER.convert_tokens_to_ids("<|endoftext|>"), ids_of("\n")
    context = [bos]
    for i in range(4):
        context += [*ids_of(examples(4)[i].text), *ids_of(f" {LABELS[i % 2]}"), *separator]
    assert prompts.context() == tuple(context)
    assert prompts.label_token_ids == tuple(ids_of(f" {word}") for word in LABELS)
    assert len(prompts.label_token_ids[1]) > 1  # a label of several tokens
    for item in prompts.demonstrations:
        assert item.token_ids[-item.label_length :] == prompts.label_token_ids[item.label]
        assert TOKENIZER.decode(list(item.token_ids)) == item.text
    for item, example_ in zip(prompts.queries, examples(3), strict=True):
        assert (item.text, item.token_ids, item.label_length) == (example_.text, ids_of(example_.text), 0)
        assert item.options is None
    assert prompts.in_context == (0, 1, 2, 3) and prompts.training is None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
@example("<|endoftext|></s><s> {0} \x00 \u202e \u2028 ")
def test_any_text_is_encoded_without_loss_and_without_special_tokens(text: str):
    query = Example(f"{text} Kind:", LABELS, 0, "here", TAIL)
    prompts = encode(drawn_of(demonstrations=(query, query), queries=(query,)), config_with(), TOKENIZER, None)
    ids = prompts.queries[0].token_ids
    assert not set(ids) & {TOKENIZER.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<|endoftext|>")}
    assert TOKENIZER.decode(list(ids), clean_up_tokenization_spaces=False) == query.text
    assert prompts.demonstrations[0].token_ids == ids + prompts.label_token_ids[0]
    json.dumps(as_json(prompts))


def test_labels_are_what_the_tokenizer_adds_after_the_template():
    model = Tokenizer(
        models.BPE()
    )  # marks words by a leading bar and puts one before every text, as sentencepiece does
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    model.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    tokenizer = wrapped(model)
    text = SENTENCES[0].removesuffix(" Negative")
    probed, bare = Example(text, LABELS, 0, "", tail=" Sentiment:"), Example(text, LABELS, 0, "")
    drawn = Drawn((probed,), (probed,), LABELS)
    prompts = encode(drawn, config_with(bos=None, separator=""), tokenizer, None)
    assert prompts.demonstrations[0].token_ids == ids_of(SENTENCES[0], tokenizer)
    assert prompts.label_token_ids[0] != ids_of(" Negative", tokenizer)
    unprobed = encode(Drawn((bare,), (bare,), LABELS), config_with(bos=None, separator=""), tokenizer, None)
    assert unprobed.label_token_ids == prompts.label_token_ids


def test_labels_that_would_merge_with_the_template_are_tokenised_alone():
    vocabulary = {"a": 0, " ": 1, "b": 2, "a ": 3, "c": 4}
    tokenizer = wrapped(Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", " ")])))
    one = (Example("ba", ("b", "c"), 0, "", tail="a"),)
    prompts = encode(Drawn(one, one, ("b", "c")), config_with(bos=None, separator=""), tokenizer, None)
    assert prompts.label_token_ids == ((1, 2), (1, 4))
    assert prompts.notes[0].startswith("2 of 2 answers would merge with the text before them")


def test_labels_with_the_same_tokens_or_none_are_refused():
    lower = tiny_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" zz", "")])
    for labels, said in {
        ("Yes", "No", "yes"): r"'Yes' and 'yes' have the same tokens \[\d.*change one of them in task\.labels",
        ("zz", "Yes"): "the label word 'zz' has no tokens",
    }.items():
        shown = examples(2, options=labels)
        drawn = drawn_of(label_words=labels, demonstrations=shown, queries=shown)
        with pytest.raises(ConfigError, match=said):
            encode(drawn, config_with(), lower, None)
        encode(drawn, config_with(), TOKENIZER, None)


def test_bos_and_separators_are_tokens_or_text():
    def encoded(**model):
        return encode(drawn_of(), config_with(**model), TOKENIZER, None)

    assert encoded(bos=None).bos == () and encoded(bos="<s>").bos == (TOKENIZER.get_vocab()["<s>"],)
    for bos in ("<bos>", "<s><s>", ""):
        with pytest.raises(ConfigError, match=rf"model\.bos='{bos}' is not a token .*model\.bos=null"):
            encoded(bos=bos)
    end = TOKENIZER.get_vocab()["</s>"]
    for text, ids in {"": (), "</s>": (end,), "\n\n": ids_of("\n\n"), "</s>\n": (end, *ids_of("\n"))}.items():
        assert encoded(separator=text).separator == ids
    blind = tiny_tokenizer()  # newlines are nothing to it, as to the fairseq models' tokenizer
    blind.backend_tokenizer.normalizer = normalizers.Replace("\n", "")
    with pytest.raises(ConfigError, match=r"model\.separator='\\n' has no tokens .*such as </s>"):
        encode(drawn_of(), config_with(separator="\n"), blind, None)


def test_a_tasks_own_separator_description_and_delimiter_hold():
    glued = tuple(replace(each, delimiter="=") for each in examples(4))
    drawn = drawn_of(demonstrations=glued, queries=glued, description="Kinds of things.\n\n", separator="\n")
    prompts = encode(drawn, config_with(separator="</s>"), TOKENIZER, None)
    assert TOKENIZER.decode(list(prompts.context()), clean_up_tokenization_spaces=False) == (
        "<|endoftext|>Kinds of things.\n\n" + "".join(f"{e.text}={e.answer}\n" for e in glued)
    )
    assert prompts.bos[1:] == ids_of("Kinds of things.\n\nA")[:-1]
    assert prompts.demonstrations[1].text == f"{glued[1].text}=Positive"


def test_separators_are_split_as_they_are_before_a_letter():
    whole = Tokenizer(models.BPE(vocab={"a": 0, "A": 1, "Ċ": 2, "ĊĊ": 3}, merges=[("Ċ", "Ċ")]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's
    one = (Example("a", ("A", "a"), 0, "", delimiter=""),)
    prompts = encode(Drawn(one, one, ("A", "a")), config_with(bos=None, separator="\n\n"), wrapped(whole), None)
    assert prompts.separator == (2, 2) and ids_of("a\n\n", wrapped(whole)) == (0, 3)


def test_texts_without_tokens_are_refused_by_line():
    blind = tiny_tokenizer()
    blind.backend_tokenizer.normalizer = normalizers.Replace("zz", "")
    with pytest.raises(DataError, match=r"t\.jsonl, line 9: the filled template 'zz' has no tokens"):
        encode(drawn_of(queries=(Example("zz", LABELS, 0, "t.jsonl, line 9"),)), config_with(), blind, None)


def test_multiple_choice_brings_options_and_ends_demonstrations_with_the_right_one():
    drawn = Drawn(choices(3), choices(4), ())
    prompts = encode(drawn, config_with(), TOKENIZER, 500)
    assert prompts.label_words == prompts.label_token_ids == ()
    for item, given_ in zip(prompts.queries, choices(4), strict=True):
        assert item.options == prompts.options(item) == tuple(ids_of(f" {word}") for word in given_.options)
        assert len(item.options) == 2 + int(given_.text[-1]) % 2
    for item, given_ in zip(prompts.demonstrations, choices(3), strict=True):
        assert item.text == f"{given_.text} {given_.options[1]}" and item.options[1] == ids_of(f" {given_.options[1]}")
        assert item.token_ids == ids_of(given_.text) + item.options[1] and item.label_length == len(item.options[1])


def test_training_items_of_a_control_are_encoded_by_their_own_labels():
    relabelled = tuple(replace(each, label=1 - each.label) for each in examples(4))
    shuffled = encode(drawn_of(training=relabelled), config_with(), TOKENIZER, None)
    assert [item.label for item in shuffled.training_items()] == [1, 0, 1, 0]
    assert all(item.options is None for item in shuffled.training_items())
    assert shuffled.training[0].token_ids[-2:] != shuffled.demonstrations[0].token_ids[-2:]
    other = tuple(Example(f"News {i} Topic:", ("World", "Food"), i % 2, "", tail=" Topic:") for i in range(4))
    foreign = encode(drawn_of(training=other), config_with(), TOKENIZER, None)
    assert foreign.training[1].text == "News 1 Topic: Food"
    assert foreign.training[1].options == (ids_of(" World"), ids_of(" Food"))
    assert foreign.training[1].token_ids == ids_of("News 1 Topic:") + ids_of(" Food")


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


def test_every_input_can_be_put_together_from_prompts_json():
    def content(drawn: Drawn, config=None, window=None):
        prompts = encode(drawn, config or config_with(), TOKENIZER, window)
        return prompts, json.loads(json.dumps(as_json(prompts), allow_nan=False))

    prompts, plain = content(drawn_of())
    assert set(plain) == {"bos", "separator", "demonstrations", "queries", "label_words", "label_token_ids"}
    assert all(set(item) == {"text", "token_ids", "label"} for item in (*plain["demonstrations"], *plain["queries"]))
    shown = [ids for item in plain["demonstrations"] for ids in (*item["token_ids"], *plain["separator"])]
    assert (*plain["bos"], *shown) == prompts.context()
    prompts, own = content(Drawn(choices(3), choices(4), ()))
    assert [item["options"] for item in own["queries"]] == [
        [*map(list, item.options or ())] for item in prompts.queries
    ]
    _, dropped = content(drawn_of(), config_with(OnOverflow.drop, DropFrom.icl), 90)
    assert set(dropped) - set(plain) == {"in_context"} and len(dropped["in_context"]) < len(dropped["demonstrations"])
    _, control = content(drawn_of(training=choices(4)))
    assert set(control) - set(plain) == {"training"} and len(control["training"]) == 4
