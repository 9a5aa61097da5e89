"""Settings are bounded where they are typed."""

import pytest

from configs import config
from iclgd.config import ConfigError

OUT = [
    ("seed=4294967296", "seed=4294967296 is out of bounds: give 0 to 4,294,967,295"),
    ("seed=-1", "seed=-1 is out of bounds"),
    ("model.weights_seed=4294967296", "model.weights_seed="),
    ("task.query_seed=-1", "task.query_seed=-1 is out of bounds"),
    ("task.shots=0", "task.shots=0 is out of bounds: give 1 to"),
    ("task.shots=1000000000000", "task.shots="),
    ("task.permutation=1000000000", "task.permutation="),
    ("finetune.epochs=-1", "finetune.epochs=-1 is out of bounds"),
    ("finetune.rank=0", "finetune.rank=0 is out of bounds"),
    ("finetune.lr=nan", "finetune.lr=nan cannot train"),
    ("finetune.lr=inf", "finetune.lr=inf cannot train"),
    ("task.rates.gd=-1", "task.rates.gd="),
    ("runtime.batch_tokens=0", "runtime.batch_tokens=0 is out of bounds"),
    ("runtime.cache_gb=-1", "runtime.cache_gb=-1"),
    ("runtime.cache_gb=nan", "runtime.cache_gb=nan is out of bounds"),
    ("finetune.layers=0-99999999999", "finetune.layers='0-99999999999' cannot be read"),
    ("finetune.layers=[999999999]", "cannot be read"),
    ("metric.scores.sim_aou.limits=[1,0]", "metric.scores.sim_aou.limits"),
    ("finetune.layers=[]", "finetune.layers=[] names no layer: write finetune.layers=all"),
    ("finetune.layers=3-1", "finetune.layers='3-1' cannot be read"),
    ("finetune.trainable=[]", "trains nothing: name something, or use finetune=none"),
    ("finetune.ridge=0", "finetune.ridge=0.0 is out of bounds"),
    ("reference.lr_factor=-3", "reference.lr_factor=-3.0 cannot train"),
    ("runtime.objective=accuracy", "runtime.objective=accuracy is not measured: name one of ['sim_aou']"),
    ("task.template=7", "task.template=7 does not exist: toy has templates 0 to 0"),
    ("task.labels=[]", "task.answer_column (open answers); it has none"),
    ("task.options=[a,b]", "task.answer_column (open answers); it has 2"),
    ("task.remap=foo", "task.remap='foo' is not a mapping: write {Negative: foo, Positive: bar}"),
    ("model.chat_arguments=foo", "model.chat_arguments='foo' is not a mapping: write {enable_thinking: false}"),
    ("model.anatomy=foo", "model.anatomy='foo' is not a mapping: write {added: self_attn.o_proj}"),
    ("task.labels_noise=1.5", "task.labels_noise=1.5 is out of bounds: give 0 to 1"),
    ("finetune.mechanism=nothing", "finetune.mechanism=nothing is not one of none, gradient_descent, exact_patch"),
    ("finetune.objective=nothing", "finetune.objective=nothing is not one of gd, lcgd, short_circuit; one of"),
    ("finetune.norm_of=nothing", "finetune.norm_of=nothing is not one of"),
]


@pytest.mark.parametrize(("override", "said"), OUT)
def test_what_is_out_of_bounds_is_refused_with_the_bounds(override, said):
    with pytest.raises(ConfigError) as refused:
        config("model=toy", "task=toy", "metric=[sim_aou]", *override.split())
    assert said in str(refused.value)


def test_a_mapping_can_be_given_on_the_command_line():
    model = config("model=toy", "task=toy", "model.chat_arguments={enable_thinking: false}").model
    assert model.chat_arguments == {"enable_thinking": False}


def test_keys_of_a_mapping_are_text():
    both = config("model=toy", "task=toy", "model.chat_arguments={1: x, a: y}", "model.anatomy={2: z}")
    assert both.model.chat_arguments == {"1": "x", "a": "y"} and both.model.anatomy == {"2": "z"}


def test_the_bounds_themselves_are_taken():
    largest = config("model=toy", "task=toy", "metric=[sim_aou]", "seed=4294967295", "runtime.cache_gb=0")
    assert largest.seed == 2**32 - 1


def test_no_scores_are_refused():
    with pytest.raises(ConfigError, match=r"metric=\[\] measures nothing: name files of conf/metric"):
        config("model=toy", "task=toy", "metric=[]")
