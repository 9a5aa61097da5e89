"""Queries of another task than the demonstrations': `task.evaluate`."""

import pytest

from configs import config as config_of
from encoding_cases import TOKENIZER
from iclgd.config import ConfigError
from iclgd.tasks.draw import draw
from iclgd.tasks.encoding import encode


def drawn(*overrides: str):
    return draw(config_of("metric=[accuracy]", *overrides))


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
