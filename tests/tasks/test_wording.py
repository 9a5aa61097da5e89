"""Templates, options and labels: safe filling, and every bad row named."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import config as config_of
from encoding_cases import TOKENIZER, ids_of
from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode
from iclgd.tasks.examples import DataError, Example
from iclgd.tasks.sources import Split
from iclgd.tasks.templates import Expression, Template
from iclgd.tasks.wording import Wording, label_words
from task_cases import write_jsonl

FUZZ = settings(max_examples=100, deadline=None)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def task(**values) -> TaskConfig:
    return TaskConfig(**{"name": "things", "templates": ["Thing: {{ text }} Kind:"], "labels": ["a", "b"], **values})


def one(row: dict, task_: TaskConfig | None = None) -> Example:
    """The example of a split of one row, which stands in line 7."""
    return Wording(task_ or task()).examples(Split("things.jsonl", [("things.jsonl, line 7", row)]))[0]


def fill(template: str, row: dict, where: str = "things.jsonl, line 7") -> str:
    return Template(template, "task.templates[0]").fill(row, where)


def test_columns_are_filled_once_and_all_else_is_text():
    row = {"text": "{{ other }} {0} {% if %}", "other": 3, "a b": 1.5, "nest": {"x": ["p", "q"]}, "options": ["s", "t"]}
    assert fill("{{ text }}|{{other}}|{{ nest.x[1] }}|{0}|{}|$x\n", row) == ("{{ other }} {0} {% if %}|3|q|{0}|{}|$x\n")
    listed = "{% for o in options %}{{ loop.index }}. {{ o | upper }}\n{% endfor %}"
    assert fill(listed, row) == "1. S\n2. T\n"
    assert fill("{{ '{word}' }} {{ text[:2] }} <b>&", row) == "{word} {{ <b>&"


@FUZZ
@given(st.text(max_size=60))
@example("{0} {{ text }} {% raw %} {# %s \x00\u202e<b>&\\input{x}")
@example("\ud800 half a pair")
def test_values_come_through_as_they_are(value: str):
    filled = fill("<{{ text }}>", {"text": value})
    assert filled == f"<{value.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')}>"
    filled.encode("utf-8")


@FUZZ
@given(st.text(alphabet="{}%#|. ()'\"[]*~-0a\n\x00\u20ac", max_size=40), ANY_JSON)
def test_no_template_and_no_value_crashes(template: str, value):
    try:
        fill(template + "{{ text }}{{ text[0] }}{{ text.a }}", {"text": value})
    except ConfigError as error:
        assert str(error).startswith(("things.jsonl, line 7: ", "task.templates[0]="))


@pytest.mark.parametrize("template", ["{{ text.__class__.__mro__ }}", "{{ all.append('x') }}", "{{ range(9) }}"])
def test_a_template_reads_its_row_and_nothing_else(template: str):
    with pytest.raises(DataError, match=r"^things\.jsonl, line 7: "):
        fill(template, {"text": "a", "all": ["a"]})


@pytest.mark.parametrize("template", ["{{ text", "{{ text | nosuchfilter }}", "{% if text %}", "{% include 'x' %}{{"])
def test_what_is_no_template_is_refused(template: str):
    with pytest.raises(ConfigError, match=r"task\.templates\[0\]=.* is not a Jinja2 template: "):
        Wording(task(templates=[template]))


BARE, MULTIPLE = {"templates": ["{{ text }}"]}, {"labels": [], "options_column": "all"}


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        *(({"text": value}, {}, r"a number \(columns: text=") for value in (None, True, ["a"], math.nan, math.inf)),
        ({"sentence": "a"}, {}, r"'text' is undefined \(columns: sentence, label\)"),
        ({"text": " "}, BARE, "the filled template is blank"),
        *(({"text": "a", "label": n}, {}, f"label {n} .* is out of range 0 to 1") for n in (2, -1, 10**30)),
        ({"text": "q", "all": ["x"]}, MULTIPLE, "fewer than 2"),
        ({"text": "q", "all": ["x", " "]}, MULTIPLE, "blank"),
        ({"text": "q", "all": "xy"}, MULTIPLE, "not a list"),
        ({"text": "q", "all": [None, "x"]}, MULTIPLE, "neither text nor numbers"),
    ],
    ids=str,
)
def test_a_bad_row_is_refused_by_line(row: dict, settings: dict, said: str):
    with pytest.raises(DataError, match=rf"things\.jsonl, line 7: .*{said}"):
        one({**row, "label": row.get("label", 0)}, task(**settings))
    assert one({"text": "", "label": 0}).text == "Thing:  Kind:", "blank only where nothing else stands"


def test_a_column_is_a_name_or_an_expression():
    row = {"a.b": 1, "a": {"b": 2, "c": [5, 6]}, "coarse-label": 3, "what kind?": 4, "list": [{"x": "p"}, {"x": "q"}]}
    for column, value in {"a.b": 1, "a.c[1]": 6, "a['b']": 2, "coarse-label": 3, "what kind?": 4}.items():
        assert Expression(column).of(row, "here") == value
    assert Expression("list | map(attribute='x') | list").of(row, "here") == ["p", "q"]
    for absent in ("c", "a.d", "a.c[2]", "b-c", "no name?"):
        with pytest.raises(DataError, match="here: "):
            Expression(absent).of(row, "here")


@FUZZ
@given(ANY_JSON, st.booleans())
def test_any_label_is_an_index_or_refused(label, named: bool):
    values = ["x", "true"] if named else None
    try:
        found = Wording(task(label_values=values)).label_of({"label": label}, 2, "things.jsonl, line 7")
    except DataError as error:
        assert str(error).startswith("things.jsonl, line 7: label ")
    else:
        assert found in (0, 1)
        assert label in (("x", "true", "True", True) if named else (0, 1))


def test_label_values_and_each_rows_own_names_give_the_index():
    def label(row: dict, options: int = 2, **how) -> int:
        return Wording(task(**how)).label_of(row, options, "here")

    assert label({"label": "b"}, label_values=["a", "b"]) == 1
    assert label({"label": 2}, label_values=["1", "2"]) == 1
    assert label({"label": False}, label_values=["False", "True"]) == 0
    among = {"label_column": "key", "label_among": "choices.label"}
    assert label({"key": "3", "choices": {"label": ["1", "2", "3"]}}, 3, **among) == 2
    with pytest.raises(DataError, match="here: label 'E' in column 'key' is not one of A, B"):
        label({"key": "E", "choices": {"label": ["A", "B"]}}, **among)
    with pytest.raises(DataError, match=r"here: column 'choices\.label' holds 'AB', not a list"):
        label({"key": "A", "choices": {"label": "AB"}}, **among)


def test_options_come_from_templates_or_a_column():
    row = {"text": "q", "one": "x", "two": "y", "all": ["p", "q", "r"], "label": 1}
    fixed = one(row, task(labels=[], options=["{{ one }}", "the {{ two }}"]))
    assert (fixed.options, fixed.answer) == (("x", "the y"), "the y")
    listed = one(row, task(labels=[], options_column="all"))
    assert (listed.options, listed.answer) == (("p", "q", "r"), "q")


def test_templates_have_tails_columns_and_label_words_of_their_own():
    several = task(templates=["{{ text }} is", "{{ text }}", "{% if text %}{{ text }}{% endif %}:"])
    several.template_labels = {1: ["c", "d"]}
    assert [Template(template, "").tail for template in several.templates] == [" is", "", ":"]
    assert label_words(several) == ("a", "b")
    several.template = 1
    assert label_words(several) == ("c", "d")
    with pytest.raises(ConfigError, match=r"task\.templates\[0\]='no column \{0\}' fills in no column"):
        Wording(task(templates=["no column {0}"]))
    with pytest.raises(ConfigError, match=r"task\.template_labels\.0 has 1 words for 2 labels"):
        label_words(task(template_labels={0: ["c"]}))
    for words in (["c", "c"], ["c", " "]):
        with pytest.raises(ConfigError, match="must be different and none may be blank"):
            label_words(task(template_labels={0: words}))


def test_every_row_is_checked_drawn_or_not():
    rows = [(f"line {number}", {"text": "a", "label": 0}) for number in range(1, 51)]
    Wording(task()).examples(Split("things.jsonl", rows))
    for bad, said in (({"label": 0}, "'text' is undefined"), ({"text": "a", "label": 2}, "out of range")):
        with pytest.raises(DataError, match=rf"line 51: .*{said}"):
            Wording(task()).examples(Split("things.jsonl", [*rows, ("line 51", bad)]))


PAIRS = [{"input": f"number {i}", "output": f"{chr(97 + i % 26)}nswer {i}"} for i in range(60)]


def pairs_config(file: Path, *overrides: str):
    return config_of("task=pairs", f"task.file={file}", "finetune=gd", "metric=[accuracy]", *overrides)


def write(file: Path, rows: list[dict]) -> Path:
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        write_jsonl(file, rows)
    elif file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_one_file_of_any_kind_gives_halves_that_no_seed_changes(suffix: str, tmp_path: Path):
    file = write(tmp_path / f"numbers{suffix}", PAIRS)
    drawn = [draw(pairs_config(file, f"seed={seed}", "task.shots=30")) for seed in (0, 1)]
    assert drawn[0].queries == drawn[1].queries and drawn[0].demonstrations != drawn[1].demonstrations
    shown = {example.text for example in drawn[0].demonstrations}
    assert shown == {example.text for example in drawn[1].demonstrations}
    asked = {example.text for example in drawn[0].queries}
    assert (len(shown), len(asked), len(shown | asked)) == (30, 30, 60)
    assert {f"Q: {row['input']}\nA:" for row in PAIRS} == shown | asked
    by_folder = config_of("task=pairs", "task.name=numbers", f"paths.data_dir={tmp_path}", "task.shots=30")
    assert [e.text for e in draw(by_folder).queries] == [e.text for e in drawn[0].queries]


def test_a_folder_has_its_own_splits(tmp_path: Path):
    write_jsonl(tmp_path / "numbers" / "train.jsonl", PAIRS[:20])
    write(tmp_path / "numbers" / "validation.json", PAIRS[20:])
    drawn = draw(config_of("task=pairs", "task.name=numbers", f"paths.data_dir={tmp_path}"))
    assert {e.text for e in drawn.queries} == {f"Q: {row['input']}\nA:" for row in PAIRS[20:]}


def test_options_are_the_answer_and_others_with_first_tokens_of_their_own(tmp_path: Path):
    config = pairs_config(write(tmp_path / "p.json", PAIRS), "task.choices=8", "model.bos=null")
    drawn = draw(config)
    prompts = encode(drawn, config, TOKENIZER, None)
    right = {f"Q: {row['input']}\nA:": ids_of(" " + row["output"]) for row in PAIRS}
    items, examples = (*prompts.queries, *prompts.demonstrations), (*drawn.queries, *drawn.demonstrations)
    for item, example_ in zip(items, examples, strict=True):
        assert item.options is not None and item.options[item.label] == right[example_.text]
        assert set(item.options) <= set(right.values())
        assert len(item.options) == len({option[0] for option in item.options}) == 8
    assert prompts.demonstrations[0].text == f"{drawn.demonstrations[0].text} {drawn.demonstrations[0].answer}"
    assert len({item.label for item in prompts.queries}) > 4  # the right one may stand anywhere
    again = pairs_config(tmp_path / "p.json", "task.choices=8", "seed=5")
    assert encode(draw(again), config, TOKENIZER, None).queries == prompts.queries


def test_answers_that_are_words_of_the_text_are_among_the_options():
    config = config_of("task=first_of_five", "metric=[accuracy]", "model.bos=null")
    answers = {example.answer for example in draw(config).queries}
    for query in draw(config).queries:
        words = set(query.text.removeprefix("Q: ").removesuffix("\nA:").split(", "))
        assert words & answers <= set(query.options[:6])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "x"}, r"row 3: 'output' is undefined \(columns: input\)"),
        ({"output": "x"}, r"row 3: 'input' is undefined \(columns: output\)"),
        ({"input": " ", "output": "x"}, "row 3: its text is blank"),
        ({"input": "x", "output": ""}, r"row 3: the options \[''\] are fewer than 1, blank"),
        ({"input": "x", "output": ["y"]}, r"row 3: the options \[\['y'\]\] are .*, or neither text nor numbers"),
        (["x"], "row 3: a list, not an object with columns"),
    ],
)
def test_a_bad_pair_is_refused_by_file_and_row(row, message: str, tmp_path: Path):
    file = write(tmp_path / "p.json", [*PAIRS[:3], row, *PAIRS[3:]])
    with pytest.raises(DataError, match=rf"p\.json.* {message}"):
        draw(pairs_config(file))


def test_a_file_with_too_few_pairs_or_none_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="has 1 rows: two or more are needed"):
        draw(pairs_config(write(tmp_path / "p.json", PAIRS[:1])))
    with pytest.raises(ConfigError, match=r"task\.file=no\.json is not a file that ends in \.jsonl, \.json"):
        draw(pairs_config(Path("no.json")))


def test_no_demonstration_equals_a_query_and_repeats_are_noted(tmp_path: Path):
    drawn = draw(pairs_config(write(tmp_path / "p.json", [*PAIRS, *PAIRS[:7]]), "task.shots=30"))
    texts = [example.text for example in (*drawn.demonstrations, *drawn.queries)]
    assert len(texts) == len(set(texts))
    assert drawn.notes[0].startswith("7 rows have the text of an earlier row and are left out: ")
    assert "p.json, row " in drawn.notes[0]


def test_too_few_other_answers_are_refused(tmp_path: Path):
    same = [{"input": f"{i}", "output": "abcd"[i % 4]} for i in range(20)]
    with pytest.raises(DataError, match=r"has 4 different answers, fewer than task\.choices=5: lower it"):
        draw(pairs_config(write(tmp_path / "p.json", same)))
    alike = [{"input": f"{i}", "output": f"zz{i}"} for i in range(20)]
    config = pairs_config(write(tmp_path / "p.json", alike))
    with pytest.raises(DataError, match=r"only 0 other answers begin with a token of their own .* needs 4: lower it"):
        encode(draw(config), config, TOKENIZER, None)
