"""A model that does not fit is refused before its weights are read."""

import dataclasses

import pytest
from transformers import AutoConfig

from configs import config
from iclgd.config import ConfigError
from iclgd.config.enumerations import Placement
from iclgd.evidence.memory import refuse_too_large, weights_size
from tiny_models import CONFIGS, tiny_network

RUN = config("model=toy", "task=toy", "runtime.dtype=float32", "runtime.device=cpu")


def with_runtime(**changes):
    return dataclasses.replace(RUN, runtime=dataclasses.replace(RUN.runtime, **changes))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_weights_are_counted_as_they_are_stored(family):
    settings = AutoConfig.for_model(family, **CONFIGS[family])
    whole, half = (weights_size(settings, run) for run in (RUN, with_runtime(dtype="bfloat16")))
    assert whole == sum(parameter.numel() for parameter in tiny_network(family).parameters()) * 4 / 1e9 == 2 * half


def test_a_model_that_does_not_fit_is_refused_with_what_would_help():
    with pytest.raises(ConfigError, match=r"cpu has .* GB free, but .* runtime\.placement=auto"):
        refuse_too_large(1e9, RUN)
    refuse_too_large(1e9, with_runtime(placement=Placement.auto))
    refuse_too_large(1e-3, RUN)
