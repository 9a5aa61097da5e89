"""Wrong labels in the demonstrations, words that mean nothing, and queries of another task."""

import pytest

from configs import config as config_of
from encoding_cases import TOKENIZER
from iclgd.config import ConfigError
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode


def drawn(*overrides: str):
    return draw(config_of("metric=[accuracy]", *overrides))


@pytest.mark.parametrize(("task", "noise", "wrong"), [("reviews", 0, 0), ("headlines", 0.25, 2), ("plurals", 1, 8)])
def test_a_share_of_the_demonstrations_has_wrong_labels(task: str, noise: float, wrong: int):
    right = drawn(f"task={task}", "task.shots=8")
    noisy = drawn(f"task={task}", "task.shots=8", f"task.labels_noise={noise}")
    pairs = list(zip(right.demonstrations, noisy.demonstrations, strict=True))
    assert [(a.text, a.options) for a, _ in pairs] == [(b.text, b.options) for _, b in pairs]
    assert sum(a.answer != b.answer for a, b in pairs) == wrong
    assert right.queries == noisy.queries
    said = [note for note in noisy.notes if note.startswith(f"{wrong} of 8 demonstrations have a wrong label")]
    assert len(said) == (wrong > 0)


def wrong_texts(*overrides: str) -> set[str]:
    right, noisy = drawn("task=reviews", *overrides, "task.labels_noise=0"), drawn("task=reviews", *overrides)
    pairs = zip(right.demonstrations, noisy.demonstrations, strict=True)
    return {a.text for a, b in pairs if a.label != b.label}


def test_wrong_labels_go_with_rows_and_seed_and_smaller_shares_lie_within_larger_ones():
    some = wrong_texts("task.labels_noise=0.25")
    assert some < wrong_texts("task.labels_noise=0.5")
    assert some == wrong_texts("task.labels_noise=0.25", "task.permutation=2")
    assert len({frozenset(wrong_texts("task.labels_noise=0.25", f"seed={seed}")) for seed in range(4)}) > 1


def test_label_words_that_mean_nothing():
    plain, other = drawn("task=reviews"), drawn("task=reviews", "task.remap={bad: foo, good: bar}")
    assert other.label_words == ("foo", "bar")
    for a, b in zip((*plain.queries, *plain.demonstrations), (*other.queries, *other.demonstrations), strict=True):
        assert (a.text, a.label) == (b.text, b.label) and b.options == ("foo", "bar")
    assert drawn("task=reviews", "task.remap={bad: good, good: bad}").label_words == ("good", "bad")


@pytest.mark.parametrize(
    ("task", "remap", "said"),
    [
        ("reviews", "{awful: foo}", r"task\.remap names awful; the label words of this task are \['bad', 'good'\]"),
        ("reviews", "{bad: good}", r"task\.remap: the label words \['good', 'good'\] must be different"),
        ("plurals", "{bad: foo}", r"task\.remap names bad; the label words of this task are \[\]"),
    ],
)
def test_a_remap_that_cannot_be_is_refused(task: str, remap: str, said: str):
    with pytest.raises(ConfigError, match=said):
        drawn(f"task={task}", f"task.remap={remap}")


@pytest.mark.parametrize(("task", "other"), [("first_of_five", "animal_of_five"), ("reviews", "headlines")])
def test_demonstrations_stay_and_queries_are_the_other_task_s(task: str, other: str):
    own, theirs, mixed = drawn(f"task={task}"), drawn(f"task={other}"), drawn(f"task={task}", f"task.evaluate={other}")
    assert mixed.demonstrations == own.demonstrations
    assert mixed.queries == theirs.queries != own.queries


def test_each_query_is_scored_among_options_of_its_own_task():
    config = config_of("task=reviews", "task.evaluate=headlines", "metric=[accuracy]", "model.bos=null")
    prompts = encode(draw(config), config, TOKENIZER, None)
    other = config_of("task=headlines", "metric=[accuracy]", "model.bos=null")
    theirs = encode(draw(other), other, TOKENIZER, None)
    assert len(prompts.label_token_ids) == 2
    assert [prompts.options(query) for query in prompts.queries] == [theirs.label_token_ids] * len(prompts.queries)
    assert [query.label for query in prompts.queries] == [query.label for query in theirs.queries]


@pytest.mark.parametrize(
    ("name", "said"), [("nope", "task.evaluate=nope is not the name of a task"), ("reviews", "name another one")]
)
def test_a_task_that_is_not_there_or_not_another_is_refused(name: str, said: str):
    with pytest.raises(ConfigError, match=said):
        drawn("task=reviews", f"task.evaluate={name}")


def test_queries_have_the_choices_and_the_seed_of_the_run():
    settings = "task=first_of_five", "task.choices=3", "task.query_seed=2"
    mixed = draw(config_of("metric=[accuracy]", *settings, "task.evaluate=animal_of_five"))
    own = draw(config_of("metric=[accuracy]", "task=animal_of_five", *settings[1:]))
    assert mixed.queries == own.queries and {query.choices for query in mixed.queries} == {3}
