"""Templates, options and labels: safe filling, and every bad row named."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.sources import DataError, Split
from iclgd.tasks.wording import check, fill, label_of, label_words, lookup, tail_of, template_of, worded

FUZZ = settings(max_examples=100, deadline=None)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def task(**values) -> TaskConfig:
    return TaskConfig(**{"name": "things", "templates": ["Thing: {text} Kind:"], "labels": ["a", "b"], **values})


def one(row: dict) -> Split:
    return Split("things.jsonl", [row], [7])


def test_columns_are_filled_once_and_all_else_is_text():
    row = {"text": "{other} {0} {text}", "other": 3, "a-b": 1.5, "nest": {"x": ["p", "q"]}}
    template = "{text}|{other}|{a-b}|{nest.x.1}|{0}|{__class__}|{}|{{text}}|{text!r}|{text:>9}"
    assert fill(template, row, "here") == (
        "{other} {0} {text}|3|1.5|q|{0}|{__class__}|{}|{{other} {0} {text}}|{text!r}|{text:>9}"
    )


@FUZZ
@given(st.text(max_size=60))
@example("{0} {__class__} {text.__class__} %s \x00\u202e<b>&\\input{x}")
@example("\ud800 half a pair")
def test_values_come_through_as_they_are(value: str):
    filled = fill("<{text}>", {"text": value}, "here")
    assert len(filled) == len(value) + 2 if value.isascii() else True
    assert filled == f"<{value.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')}>"
    filled.encode("utf-8")


@FUZZ
@given(st.text(max_size=40), ANY_JSON)
def test_no_template_and_no_value_crashes(template: str, value):
    try:
        fill(template + "{text}{text.0}{text.a}", {"text": value}, "things.jsonl, line 7")
    except DataError as error:
        assert str(error).startswith("things.jsonl, line 7: ")


@pytest.mark.parametrize("value", [None, True, ["a"], {"a": 1}])
def test_a_value_that_is_no_text_is_refused(value):
    with pytest.raises(DataError, match=r"things\.jsonl, line 7: column 'text' holds .*, not text or a number"):
        worded(one({"text": value, "label": 0}), 0, task())


def test_a_missing_column_names_those_that_are_there():
    with pytest.raises(DataError, match=r"things\.jsonl, line 7: no column 'text' \(columns there: sentence, label\)"):
        worded(one({"sentence": "a", "label": 0}), 0, task())
    with pytest.raises(DataError, match=r"line 7: no column 'label'"):
        worded(one({"text": "a"}), 0, task())


def test_lookup_goes_into_objects_and_lists():
    row = {"a.b": 1, "a": {"b": 2, "c": [5, 6]}, "list": [{"x": "p"}, {"x": "q"}]}
    assert [lookup(row, column) for column in ("a.b", "a.c.1", "list.x", "list.0.x")] == [1, 6, ["p", "q"], "p"]
    for absent in ("c", "a.d", "a.c.2", "a.b.c.d", "list.y", "a.c.x"):
        with pytest.raises(KeyError):
            lookup({"a": row["a"], "list": row["list"]}, absent)


@pytest.mark.parametrize("label", [2, -1, 10**30])
def test_labels_out_of_range_are_refused_by_line(label: int):
    with pytest.raises(
        DataError, match=rf"things\.jsonl, line 7: label {label} in column 'label' is out of range 0 to 1"
    ):
        worded(one({"text": "a", "label": label}), 0, task())


@pytest.mark.parametrize("label", ["1", "positive", 1.0, True, None, [1], {"a": 1}])
def test_labels_of_another_type_are_refused_by_line(label):
    with pytest.raises(DataError, match=r"things\.jsonl, line 7: label .* is no label id .*task\.label_values"):
        worded(one({"text": "a", "label": label}), 0, task())


@FUZZ
@given(ANY_JSON, st.booleans())
def test_any_label_is_an_index_or_refused(label, named: bool):
    values = ["x", "true"] if named else None
    try:
        found = label_of({"label": label}, task(label_values=values), 2, "things.jsonl, line 7")
    except DataError as error:
        assert str(error).startswith("things.jsonl, line 7: label ")
    else:
        assert found in (0, 1)
        assert label in (("x", "true", "True", True) if named else (0, 1))


def test_label_values_and_each_rows_own_names_give_the_index():
    assert label_of({"label": "b"}, task(label_values=["a", "b"]), 2, "") == 1
    assert label_of({"label": 2}, task(label_values=["1", "2"]), 2, "") == 1
    assert label_of({"label": False}, task(label_values=["False", "True"]), 2, "") == 0
    among = task(label_column="key", label_among="choices.label")
    assert label_of({"key": "3", "choices": {"label": ["1", "2", "3"]}}, among, 3, "") == 2
    with pytest.raises(DataError, match="here: label 'E' in column 'key' is none of A, B"):
        label_of({"key": "E", "choices": {"label": ["A", "B"]}}, among, 2, "here")
    with pytest.raises(DataError, match=r"here: column 'choices\.label' holds 'AB', not a list"):
        label_of({"key": "A", "choices": {"label": "AB"}}, among, 2, "here")


def test_options_come_from_templates_or_a_column():
    row = {"text": "q", "one": "x", "two": "y", "all": ["p", "q", "r"], "label": 1}
    fixed = worded(one(row), 0, task(labels=[], options=["{one}", "the {two}"]))
    assert (fixed.options, fixed.answer) == (("x", "the y"), "the y")
    listed = worded(one(row), 0, task(labels=[], options_column="all"))
    assert (listed.options, listed.answer) == (("p", "q", "r"), "q")


@pytest.mark.parametrize(
    ("options", "said"), [(["x"], "too few"), (["x", " "], "too few or blank"), ("xy", "not a list")]
)
def test_bad_options_are_refused_by_line(options, said: str):
    with pytest.raises(DataError, match=rf"things\.jsonl, line 7: .*{said}"):
        worded(one({"text": "q", "all": options, "label": 0}), 0, task(labels=[], options_column="all"))


def test_blank_text_is_refused_only_where_nothing_else_stands():
    assert worded(one({"text": "", "label": 0}), 0, task()).text == "Thing:  Kind:"
    with pytest.raises(DataError, match="line 7: the filled template is blank"):
        worded(one({"text": " ", "label": 0}), 0, task(templates=["{text}"]))


def test_templates_have_tails_columns_and_label_words_of_their_own():
    several = task(templates=["{text} is", "{text}"], template_labels={1: ["c", "d"]})
    assert [tail_of(template) for template in several.templates] == [" is", ""]
    assert label_words(several) == ("a", "b")
    several.template = 1
    assert label_words(several) == ("c", "d")
    with pytest.raises(ConfigError, match=r"task\.templates\[0\]='no column \{0\}' fills in no column"):
        template_of(task(templates=["no column {0}"]))
    with pytest.raises(ConfigError, match=r"task\.template_labels\.0 has 1 words for 2 labels"):
        label_words(task(template_labels={0: ["c"]}))
    for words in (["c", "c"], ["c", " "]):
        with pytest.raises(ConfigError, match="must be different and none may be blank"):
            label_words(task(template_labels={0: words}))


def test_every_row_is_checked_drawn_or_not():
    rows = [{"text": "a", "label": 0}] * 50
    check(Split("things.jsonl", rows, range(1, 51)), task())
    for bad, said in (({"label": 0}, "no column 'text'"), ({"text": "a", "label": 2}, "out of range")):
        with pytest.raises(DataError, match=rf"things\.jsonl, line 51: .*{said}"):
            check(Split("things.jsonl", [*rows, bad], range(1, 52)), task())
