"""Mechanisms where theory says what they must do, and that they leave nothing behind."""

from contextlib import contextmanager

import pytest
import torch

from iclgd.config import ConfigError
from iclgd.config.enumerations import Mechanism, Objective
from iclgd.mechanisms import objectives
from iclgd.mechanisms.registry import MECHANISMS, resolve_mechanism
from iclgd.models.forward import encode_prefix
from iclgd.models.interventions import intervening, last_tokens, own_prefix, rewriting, unchanged_afterwards
from mechanism_cases import (
    acted,
    bench,
    shown,
)
from tiny_models import shared_model, tiny_model


@contextmanager
def doing_nothing(given):
    """A mechanism of one's own whose changes are identities."""

    @contextmanager
    def intervention(token_ids, state):
        chosen = last_tokens(state, token_ids.shape[1])
        with rewriting(given.model, given.options.at, given.layers, chosen, lambda _layer, rows: rows):
            yield

    with intervening(given.model, intervention), own_prefix(given.model, encode_prefix(given.model, given.prompts.bos)):
        yield given.no_steps()


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_a_mechanism_that_changes_nothing_is_none_bit_for_bit(family):
    model = shared_model(family)
    own = acted(bench(model, "none", f"finetune.mechanism={__name__}.doing_nothing"))[0]
    for name, tensor in acted(bench(model, "none"))[0].tensors().items():
        assert torch.equal(tensor.nan_to_num(), getattr(own, name).nan_to_num()), name


def test_the_config_names_every_mechanism_and_objective():
    assert list(MECHANISMS) == list(Mechanism) and list(objectives._OBJECTIVES) == list(Objective)


def test_mistakes_in_a_mechanism_of_ones_own_name_what_there_is():
    given = bench(shared_model("llama"), "mean_shift", case=shown(calibration=((17, 29), (18, 30, 42))))
    with pytest.raises(ConfigError, match=r"'attention' is not recorded, choose one of .*attention_output"):
        given.observe(given.rows(), "attention", context=False)
    for site, layer, message in (
        ("attention", 0, "'attention' is not a site, choose one of attention_output"),
        ("block_output", 99, "layer 99 does not exist: the model's layers are 0 to"),
    ):
        with pytest.raises(ConfigError, match=message), given.rewriting(site, [layer], lambda _layer, rows: rows):
            pass


LEAVING = {
    "hooks of": lambda model: model.anatomy.blocks[0].register_forward_hook(lambda *_: None),
    "training mode of": lambda model: model.network.train(),
    "parameter": lambda model: model.anatomy.blocks[0].self_attn.k_proj.weight.data.mul_(1.001),
    "an intervention": lambda model: model.interventions.append(None),
}


@pytest.mark.parametrize("what", LEAVING)
def test_what_a_mechanism_leaves_on_the_model_is_refused_by_name(what):
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match=rf"finetune=mine leaves the model changed \({what}"):
        with unchanged_afterwards(model, "mine"):
            LEAVING[what](model)


@pytest.mark.parametrize("variant", sorted(set(MECHANISMS) - {"none", "gradient_descent"}))
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error_or_an_interrupt(variant, error):
    model, case = tiny_model("llama"), shown(calibration=((17, 29), (18, 30, 42)))
    given = bench(model, variant, "finetune.epochs=1", case=case)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with pytest.raises(error), resolve_mechanism(variant)(given):
        raise error
    assert not model.interventions and not model.prefixes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())


def test_a_mechanism_sees_only_what_its_yaml_says():
    blind = (("one_shot_mean", "nothing"), ("mean_shift", "nothing"), ("kv_prefix", "nothing"))
    for variant, sees in (("task_vector", "demonstrations"), ("activation_match", "calibration"), *blind):
        given = bench(shared_model("llama"), variant, f"finetune.sees={sees}")
        with pytest.raises(ConfigError, match=f"finetune.sees={sees} does not show them: set finetune.sees="):
            with resolve_mechanism(variant)(given):
                pass


@pytest.mark.parametrize("variant", ["priming", "context_distillation", "kv_prefix", "prefix_tuning"])
def test_training_lowers_its_loss_and_leaves_the_weights(variant):
    model, case = shared_model("llama"), shown(calibration=((17, 29), (18, 30, 42)))
    for sees in ("demonstrations", "calibration") if "prefix" not in variant else ("demonstrations",):
        _, trace = acted(bench(model, variant, f"finetune.sees={sees}", "finetune.epochs=30", case=case))
        steps = len(trace.losses) // 30
        assert trace.losses[-steps:].mean() < trace.losses[:steps].mean()
        assert trace.update_norms.nan_to_num().gt(0).any()
