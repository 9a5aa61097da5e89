"""Templates, options and labels: safe filling, and every bad row named."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.examples import DataError, Example
from iclgd.tasks.sources import Split
from iclgd.tasks.templates import Expression, Template
from iclgd.tasks.wording import Wording, label_words

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
    return Wording(task_ or task()).examples(Split("things.jsonl", [row], [7]))[0]


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


@pytest.mark.parametrize(
    "template",
    ["{{ text.__class__.__mro__ }}", "{{ options.append('x') }}", "{{ range(9) }}", "{{ text / 0 }}"],
)
def test_a_template_reads_its_row_and_nothing_else(template: str):
    with pytest.raises(DataError, match=r"^things\.jsonl, line 7: "):
        fill(template, {"text": "a", "options": ["a"]})


@pytest.mark.parametrize("template", ["{{ text", "{{ text | nosuchfilter }}", "{% if text %}", "{% include 'x' %}{{"])
def test_what_is_no_template_is_refused(template: str):
    with pytest.raises(ConfigError, match=r"task\.templates\[0\]=.* is not a Jinja2 template: "):
        Wording(task(templates=[template]))


@pytest.mark.parametrize("value", [None, True, ["a"], {"a": 1}, float("nan"), float("inf")])
def test_a_value_that_is_no_text_is_refused(value):
    with pytest.raises(DataError, match=r"things\.jsonl, line 7: column 'text' holds .*, not text or a number"):
        one({"text": value, "label": 0})


def test_a_missing_column_names_those_that_are_there():
    with pytest.raises(DataError, match=r"things\.jsonl, line 7: no column 'text' \(columns there: sentence, label\)"):
        one({"sentence": "a", "label": 0})
    with pytest.raises(DataError, match=r"line 7: no column 'label'"):
        one({"text": "a"})


def test_a_column_is_a_name_or_an_expression():
    row = {"a.b": 1, "a": {"b": 2, "c": [5, 6]}, "coarse-label": 3, "what kind?": 4, "list": [{"x": "p"}, {"x": "q"}]}
    for column, value in {"a.b": 1, "a.c[1]": 6, "a['b']": 2, "coarse-label": 3, "what kind?": 4}.items():
        assert Expression(column, "task.label_column").of(row, "here") == value
    assert Expression("list | map(attribute='x') | list", "task.options_column").of(row, "here") == ["p", "q"]
    for absent in ("c", "a.d", "a.c[2]", "b-c", "no name?"):
        with pytest.raises(DataError, match="here: "):
            Expression(absent, "task.label_column").of(row, "here")


@pytest.mark.parametrize("label", [2, -1, 10**30])
def test_labels_out_of_range_are_refused_by_line(label: int):
    with pytest.raises(
        DataError, match=rf"things\.jsonl, line 7: label {label} in column 'label' is out of range 0 to 1"
    ):
        one({"text": "a", "label": label})


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
    with pytest.raises(DataError, match="here: label 'E' in column 'key' is none of A, B"):
        label({"key": "E", "choices": {"label": ["A", "B"]}}, **among)
    with pytest.raises(DataError, match=r"here: column 'choices\.label' holds 'AB', not a list"):
        label({"key": "A", "choices": {"label": "AB"}}, **among)


def test_options_come_from_templates_or_a_column():
    row = {"text": "q", "one": "x", "two": "y", "all": ["p", "q", "r"], "label": 1}
    fixed = one(row, task(labels=[], options=["{{ one }}", "the {{ two }}"]))
    assert (fixed.options, fixed.answer) == (("x", "the y"), "the y")
    listed = one(row, task(labels=[], options_column="all"))
    assert (listed.options, listed.answer) == (("p", "q", "r"), "q")


@pytest.mark.parametrize(
    ("options", "said"), [(["x"], "too few"), (["x", " "], "too few or blank"), ("xy", "not a list"), ([None], "not a")]
)
def test_bad_options_are_refused_by_line(options, said: str):
    with pytest.raises(DataError, match=rf"things\.jsonl, line 7: .*{said}"):
        one({"text": "q", "all": options, "label": 0}, task(labels=[], options_column="all"))


def test_blank_text_is_refused_only_where_nothing_else_stands():
    assert one({"text": "", "label": 0}).text == "Thing:  Kind:"
    with pytest.raises(DataError, match="line 7: the filled template is blank"):
        one({"text": " ", "label": 0}, task(templates=["{{ text }}"]))


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
    rows = [{"text": "a", "label": 0}] * 50
    Wording(task()).examples(Split("things.jsonl", rows, range(1, 51)))
    for bad, said in (({"label": 0}, "no column 'text'"), ({"text": "a", "label": 2}, "out of range")):
        with pytest.raises(DataError, match=rf"things\.jsonl, line 51: .*{said}"):
            Wording(task()).examples(Split("things.jsonl", [*rows, bad], range(1, 52)))
