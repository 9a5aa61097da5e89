"""What may mislead in rows, labels and tokens is refused or noted with its amount."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from configs import config as config_of
from encoding_cases import TOKENIZER, config_with, drawn_of, examples, wrapped
from iclgd.config import ConfigError
from iclgd.config.enumerations import OnLeak
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode
from iclgd.tasks.examples import DataError
from iclgd.tasks.notes import as_json
from task_cases import make_config, rows_of, write_task
from tiny import tiny_tokenizer


def notes_of(drawn, tokenizer=TOKENIZER, **model) -> list[str]:
    return list(encode(drawn, config_with(**{"bos": None, **model}), tokenizer, None).notes)


def with_options(*options: str):
    shown = examples(4, options=options)
    return drawn_of(label_words=options, demonstrations=shown, queries=shown)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            {"templates": ["Thing: {{ text }} Kind: "]},
            r"task\.templates\[0\] has white space beside task\.delimiter=' '",
        ),
        ({"labels": ["Negative", " Positive"]}, r"task\.labels: ' Positive' has white space beside task\.delimiter"),
    ],
)
def test_two_spaces_before_an_answer_are_refused_with_the_key(task, said, tmp_path: Path):
    data = write_task(tmp_path, rows_of(8))
    with pytest.raises(ConfigError, match=said):
        draw(make_config(data, **task))
    assert len(draw(make_config(data, delimiter="", **task)).queries) == 8


def test_no_bundled_or_hub_task_has_two_spaces_or_notes():
    for name in ("toy", "toy_other", "reviews", "headlines", "entailment"):
        assert draw(config_of(f"task={name}")).notes == ()


def test_rows_that_end_in_a_space_are_counted(tmp_path: Path):
    rows = [{"text": f"thing {i}" + " " * (i < 3), "label": i % 2} for i in range(8)]
    drawn = draw(make_config(write_task(tmp_path, rows), templates=["{{ text }}"], shots=8))
    assert "6 of 16 demonstrations and queries have two spaces before an answer" in drawn.notes


def test_demonstrations_among_the_queries_are_counted_dropped_or_refused(tmp_path: Path):
    data = write_task(tmp_path, rows_of(20))
    kept = draw(make_config(data, shots=4))
    assert kept.notes == ("4 of 20 queries have the text of a demonstration: task.on_leak=drop leaves them out",)
    dropped = draw(make_config(data, shots=4, on_leak=OnLeak.drop, queries=10))
    assert dropped.notes == () and len(dropped.queries) == 10
    assert not {each.text for each in dropped.queries} & {each.text for each in dropped.demonstrations}
    with pytest.raises(DataError, match=r"4 of 20 queries .*: set task\.on_leak=drop or keep"):
        draw(make_config(data, shots=4, on_leak=OnLeak.error))


def test_odd_demonstrations_are_counted(tmp_path: Path):
    rows = [{"text": ["same", "same", " ", "other"][i], "label": 0} for i in range(4)]
    drawn = draw(make_config(write_task(tmp_path, rows, validation=rows_of(5)), shots=4))
    assert drawn.notes == (
        "all 4 demonstrations have the label 'Negative'",
        "1 of 4 demonstrations have the text of another one",
        "1 of 9 demonstrations and queries are empty but for the template",
    )


def test_tokens_that_lose_the_spaces_are_refused():
    glued = tiny_tokenizer()
    glued.backend_tokenizer.normalizer = normalizers.Replace(" ", "")
    with pytest.raises(ConfigError, match=r"loses the spaces between words: .* becomes 'Thing:word"):
        notes_of(drawn_of(), glued)


def test_tokens_that_say_something_else_are_noted_and_kept_in_prompts_json():
    lower = tiny_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    prompts = encode(drawn_of(), config_with(bos=None), lower, None)
    assert "the tokens of 7 of 7 texts give another text back; prompts.json has both" in prompts.notes
    item = as_json(prompts)["queries"][0]
    assert item["decoded"] == item["text"].lower() != item["text"]
    assert "decoded" not in as_json(encode(drawn_of(), config_with(bos=None), TOKENIZER, None))["queries"][0]


def words_only(*words: str):
    vocabulary = {word: index for index, word in enumerate(["<unk>", *words])}
    tokenizer = wrapped(Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), unk_token="<unk>")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_unknown_tokens_are_counted_and_refused_where_they_are_most():
    few = words_only("Thing:", "Kind:", "Negative", "Positive", "word0", "word1", "word2")
    # of 4 demonstrations of 6 tokens and 3 queries of 5, the three words of demonstration 3 are unknown
    assert "3 of 39 tokens are unknown to the tokenizer (7.7%)" in notes_of(drawn_of(), few, separator="")
    with pytest.raises(ConfigError, match=r"\d\d% of all tokens are unknown to this model's tokenizer"):
        notes_of(drawn_of(), words_only("Thing:", "Negative", "Positive"), separator="")


def test_labels_that_are_alike_are_noted():
    known = words_only("Thing:", "Kind:", "Negative", "Positive", "word0", "word1", "word2", "word3")
    assert notes_of(drawn_of(), known, separator="") == []
    alike = notes_of(with_options("neutral", "neutral-ish"))
    assert "label options share their first token" in alike and "label options begin with one another" in alike
    lengths = (
        "differ in their number of tokens; they are scored by the mean of their tokens (task.length_normalised=true)"
    )
    assert f"label options {lengths}" in alike
    own = with_options("neutral", "neutral-ish")
    own = replace(own, label_words=(), queries=(*own.queries, *examples(2, options=("x", "q"))))
    assert "label options begin with one another: 4 of 6 queries" in notes_of(own)


def test_a_bos_that_the_tokenizer_would_not_put_is_noted():
    said = "model.bos=auto puts '<|endoftext|>' before every prompt"
    assert any(note.startswith(said) for note in notes_of(drawn_of(), bos="auto"))
    assert not any("model.bos" in note for note in notes_of(drawn_of(), bos="<|endoftext|>"))
