"""A model in memory: its results are those of the same model on disk, belong to its content, and cost it nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from iclgd import api
from iclgd.common import paths
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import ModelSource, Placement
from iclgd.models.files import held, in_memory
from iclgd.models.in_memory import copied, holding
from iclgd.models.loading import load
from iclgd.runs.folder import RunFolder
from iclgd.verify.check import verify
from tiny import tiny_tokenizer
from tiny_models import RECORDABLE, VOCABULARY, tiny_network

TINY = {"task": "toy", "task__queries": 6, "task__shots": 3, "tracking": "none", "model__separator": "<sep>"}
ARGUMENTS = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft


def lora() -> peft.LoraConfig:
    """A new one each time, for PEFT writes the model's name into it."""
    return peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=6)


@pytest.fixture
def toy() -> tuple[PreTrainedModel, Any]:
    folder = paths.toy_model_folder()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not in_memory


def state_of(network: torch.nn.Module) -> list[Any]:
    """Everything that a run must leave alone, the weights bit for bit."""
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    weights = [
        (name, weight.requires_grad, weight.dtype, weight.detach().contiguous().view(-1).view(torch.uint8).tolist())
        for name, weight in network.named_parameters()
    ]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    return [modules, weights, hooks, network.config.to_dict(), network.config._attn_implementation]


def inputs_of(network: object, tokenizer: Any) -> dict[str, str]:
    with holding(network, tokenizer) as settings:
        return in_memory[settings["revision"]].inputs


def copy_of(network: object) -> PreTrainedModel:
    with holding(network, tiny_tokenizer()) as settings:
        one = in_memory[settings["revision"]]
        return copied(one, {**ARGUMENTS, "config": copy.deepcopy(one.network.config)})[0]


def adapted(network: PreTrainedModel) -> peft.PeftModel:
    """With a LoRA adapter that changes what the model computes."""
    model = peft.get_peft_model(network, lora())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


def test_it_scores_as_the_same_model_on_disk_and_stays_as_it_is(here: Path, toy: tuple[PreTrainedModel, Any]):
    network, tokenizer = toy
    network.train()
    network.config.use_cache = False
    next(network.parameters()).requires_grad_(False)
    before = state_of(network)
    made = api.run(model=network, tokenizer=tokenizer, model__name="mine", **TINY)
    assert state_of(network) == before
    assert {kind for _, _, kind in before[0]} == {True}
    named = api.run(model="toy", **TINY)
    assert made.scores == named.scores and made.prompts() == named.prompts() and made.folder != named.folder
    assert made.settings["model.name"] == "mine" and made.config["model"]["source"] == "memory"


def test_results_belong_to_its_content(here: Path, toy: tuple[PreTrainedModel, Any]):
    network, tokenizer = toy
    first = api.run(model=network, tokenizer=tokenizer, **TINY)
    again = api.run(model=copy.deepcopy(network), tokenizer=tokenizer, **TINY)
    assert again.folder == first.folder and again.status == first.status
    weight = network.get_parameter("model.layers.1.self_attn.k_proj.weight")
    with torch.no_grad():
        weight += 0.05
    changed = api.run(model=network, tokenizer=tokenizer, **TINY)
    assert changed.folder != first.folder and changed.scores != first.scores
    both = api.load(here)
    assert both.varied == ("model.revision",) and both[0].name != both[1].name


def test_only_the_process_that_holds_it_can_measure_it(here: Path, toy: tuple[PreTrainedModel, Any]):
    made = api.run(model=toy[0], tokenizer=toy[1], model__name="mine", **TINY)
    [problem] = verify(made.folder).problems
    assert "model.name=mine" in problem and "is not on disk" in problem
    with pytest.raises(ConfigError, match=r"model\.name=mine .* is not on disk"):
        load(
            ModelConfig(name="mine", source=ModelSource.memory, revision=made.config["model"]["revision"]),
            RuntimeConfig(),
        )
    assert RunFolder(made.folder).is_done()


def test_a_sweep_over_one_model(here: Path, toy: tuple[PreTrainedModel, Any]):
    made = api.sweep(model=toy[0], tokenizer=toy[1], finetune=["gd", "none"], **TINY)
    assert made.varied == ("finetune.name",) and len(made) == 2 and not made.left_out


@pytest.mark.parametrize("family", RECORDABLE)
def test_the_copy_of_every_family_has_its_weights(family: str):
    network = tiny_network(family)
    before, made = state_of(network), copy_of(network)
    assert state_of(network) == before
    theirs = network.state_dict()
    assert theirs.keys() == made.state_dict().keys()
    for name, mine in made.state_dict().items():
        assert torch.equal(mine, theirs[name]) and mine.data_ptr() != theirs[name].data_ptr()


def test_adapters_count_as_merged():
    network = tiny_network("llama")
    expected = copy.deepcopy(network)
    model = adapted(network)
    with torch.no_grad():
        for name in ("self_attn.q_proj", "mlp.down_proj"):
            for mine, theirs in zip(expected.model.layers, model.base_model.model.model.layers, strict=True):
                adapter = theirs.get_submodule(name)
                change = 3 * adapter.lora_B["default"].weight @ adapter.lora_A["default"].weight
                mine.get_submodule(name).weight += change
                assert change.abs().max() > 0.01
    before, made = state_of(model), copy_of(model)
    assert state_of(model) == before
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], weight)
    own = inputs_of(model, tiny_tokenizer())
    assert own["weights"] != inputs_of(tiny_network("llama"), tiny_tokenizer())["weights"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_a_half_precision_model_are_merged_in_float32(dtype: torch.dtype):
    model = adapted(tiny_network("llama").to(dtype))
    made, tokens = copy_of(model), torch.arange(1, 9)[None]
    assert {weight.dtype for weight in model.base_model.model.lm_head.parameters()} == {dtype}
    unmerged = model.float().eval()
    unmerged.base_model.model.model.rotary_emb = copy.deepcopy(made.model.rotary_emb)  # rounded by the cast to half
    torch.testing.assert_close(made.eval()(tokens).logits, unmerged(tokens).logits, rtol=1e-4, atol=1e-5)


def test_what_bears_on_numbers_is_in_the_digest_and_nothing_else():
    network, tokenizer = tiny_network("llama"), tiny_tokenizer()
    inputs = inputs_of(network, tokenizer)
    assert set(inputs) >= {"weights", "config.json", "tokenizer.json", "tokenizer_config.json"}
    network.train().config.use_cache = False
    network.config._name_or_path = "another/name"
    tokenizer(["one", "two and three"], padding=True, truncation=True, max_length=3)
    assert inputs_of(network, tokenizer) == inputs

    def differing(change: Callable[[PreTrainedModel], object]) -> set[str]:
        other = tiny_network("llama")
        change(other)
        now = inputs_of(other, tokenizer)
        return {name for name in inputs if now[name] != inputs[name]}

    def next_bit(other: PreTrainedModel) -> None:
        weight = other.get_parameter("lm_head.weight").data
        weight[0, 0] = weight[0, 0].nextafter(torch.tensor(9.0))

    assert differing(next_bit) == {"weights"}
    assert differing(lambda other: other.bfloat16()) == {"weights", "modules"}  # the rotary frequencies too
    assert differing(lambda other: setattr(other.config, "rms_norm_eps", 1e-3)) == {"config.json"}
    assert inputs_of(network, tiny_tokenizer(300))["tokenizer.json"] != inputs["tokenizer.json"]
    assert differing(lambda other: other.model.rotary_emb.inv_freq.div_(2)) == {"modules"}
    assert differing(lambda other: setattr(other.model.layers[0].self_attn, "num_key_value_groups", 1)) == {"modules"}
    assert differing(lambda other: setattr(other.model.layers[0].self_attn, "is_causal", False)) == {"modules"}
    assert differing(lambda other: setattr(other.model, "gradient_checkpointing", True)) == set()


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_frequencies_that_grow_with_use_are_no_change(kind: str):
    settings = {
        "dynamic": {"factor": 2.0},
        "longrope": {"factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    }
    more = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 8, **settings[kind]}
    network = tiny_network("llama", rope_parameters=more, max_position_embeddings=8)
    before, frequencies = inputs_of(network, tiny_tokenizer()), network.model.rotary_emb.inv_freq.clone()
    network(torch.ones(1, 20, dtype=torch.long))
    assert not torch.equal(frequencies, network.model.rotary_emb.inv_freq)
    assert inputs_of(network, tiny_tokenizer()) == before


def observe(module: torch.nn.Module, args: object, output: object) -> None: ...


class Own(torch.nn.Identity): ...


def wrapped(network: PreTrainedModel) -> None:
    forward = network.model.norm.forward
    network.model.norm.forward = functools.wraps(forward)(lambda hidden: forward(hidden))


@pytest.mark.parametrize(
    ("change", "known"),
    [
        (lambda network: network.model.norm.register_forward_hook(observe), False),
        (lambda network: setattr(network.model, "own", Own()), False),
        (wrapped, False),
        (lambda network: setattr(network.model.norm, "forward", functools.partial(type(network).forward, 1)), True),
        (lambda network: network.enable_input_require_grads(), True),
    ],
)
def test_code_of_ones_own_is_never_found_done(change: Callable[[PreTrainedModel], object], known: bool):
    """It may have been edited under the same name, or read something else."""
    network = tiny_network("llama")
    change(network)
    first, second = (inputs_of(network, tiny_tokenizer()) for _ in range(2))
    assert {name for name in first if first[name] != second[name]} == (set() if known else {"modules"})


def hooked(network: PreTrainedModel) -> object:
    network.model.layers[0].register_forward_hook(lambda module, args, output: output * 1.5)
    return network


def patched(network: PreTrainedModel) -> object:
    network.model.layers[1].mlp.forward = torch.zeros_like
    return network


def switched_off(network: PreTrainedModel) -> object:
    model = adapted(network)
    model.base_model.disable_adapter_layers()
    return model


def prompted(network: PreTrainedModel) -> object:
    return peft.get_peft_model(network, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def injected(network: PreTrainedModel) -> object:
    network.add_adapter(lora())
    return network


def rescaled(network: PreTrainedModel) -> object:
    network.model.layers[0].self_attn.scaling *= 2
    return network


def replaced(network: PreTrainedModel) -> object:
    network.model.layers[0].mlp.act_fn = torch.nn.Tanh()
    return network


@pytest.mark.parametrize("change", [hooked, patched, rescaled, replaced, switched_off])
def test_a_run_is_not_found_for_a_model_that_computes_something_else_since(change: Any, here: Path, toy: Any):
    network, tokenizer = toy
    if change is switched_off:
        model = adapted(network)
        api.run(model=model, tokenizer=tokenizer, **TINY)
        model.base_model.disable_adapter_layers()
    else:
        api.run(model=network, tokenizer=tokenizer, **TINY)
        model = change(network)
    with pytest.raises(api.RunFailed, match="computes something else than its config and weights say"):
        api.run(model=model, tokenizer=tokenizer, **TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, "computes something else than its config and weights say"),
        (patched, "computes something else than its config and weights say"),
        (switched_off, "computes something else than its config and weights say"),
        (prompted, r"the adapters \(PROMPT_TUNING\) cannot be merged"),
        (injected, "belong to no part of the model"),
        (lambda network: network.model, "got a LlamaModel; it takes a causal language model"),
        (lambda network: torch.nn.Linear(2, 2), "got a Linear; it takes a causal language model"),
        (lambda network: network.to("meta"), "are not all in this process's memory"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: Callable[[PreTrainedModel], object], message: str):
    model = change(tiny_network("llama"))
    with pytest.raises(ConfigError, match=message), holding(model, tiny_tokenizer(VOCABULARY)) as settings:
        load(ModelConfig(**{**settings, "source": ModelSource.memory}), RuntimeConfig())
    assert not in_memory


def test_refusals_that_need_no_model(toy: tuple[PreTrainedModel, Any]):
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        api.run(model=toy[0])
    with pytest.raises(ConfigError, match="a model that is named brings its own"):
        api.run(model="toy", tokenizer=toy[1])
    with pytest.raises(ConfigError, match=r"runtime\.placement=auto is for models on disk"):
        api.run(model=toy[0], tokenizer=toy[1], runtime__placement=Placement.auto, **TINY)
    with pytest.raises(ConfigError, match="is not on disk"):
        held(ModelConfig(name="x", source=ModelSource.memory))
