"""A model in memory: its results are those of the same model on disk, belong to its content, and cost it nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from families.tiny import tiny_network as of_family
from iclgd import api
from iclgd.common import paths
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import ModelSource
from iclgd.models.files import model_inputs
from iclgd.models.in_memory import holding
from iclgd.models.loading import load
from iclgd.verify.check import verify
from tiny import tiny_tokenizer
from tiny_models import VOCABULARY, tiny_network

TINY = {"task": "toy", "task__queries": 6, "task__shots": 3, "tracking": "none", "model__separator": "<sep>"}
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft


def lora() -> peft.LoraConfig:
    """A new one each time, for PEFT writes the model's name into it."""
    return peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=6)


@pytest.fixture
def toy() -> tuple[PreTrainedModel, Any]:
    folder = paths.toy_model_folder()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def state_of(network: torch.nn.Module) -> list[Any]:
    """Everything that a run must leave alone, the weights bit for bit."""
    modules = [(name, type(module), module.training) for name, module in network.named_modules()]
    weights = [
        (name, weight.requires_grad, weight.dtype, weight.detach().contiguous().view(-1).view(torch.uint8).tolist())
        for name, weight in network.named_parameters()
    ]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    return [modules, weights, hooks, network.config.to_dict(), network.config._attn_implementation]


def config_of(settings: dict[str, str]) -> ModelConfig:
    return ModelConfig(**{**settings, "source": ModelSource.memory})


def inputs_of(network: object, tokenizer: Any) -> dict[str, str]:
    with holding(network, tokenizer) as settings:
        return model_inputs(config_of(settings))


def copy_of(network: object) -> PreTrainedModel:
    """The model that is measured."""
    with holding(network, tiny_tokenizer(VOCABULARY)) as settings:
        return load(config_of(settings), RuntimeConfig(device="cpu")).network


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
    run = api.run(model=network, tokenizer=tokenizer, model__name="mine", **TINY)
    assert state_of(network) == before
    assert {kind for _, _, kind in before[0]} == {True}
    named = api.run(model="toy", **TINY)
    assert run.scores == named.scores and run.prompts() == named.prompts() and run.folder != named.folder
    assert run.settings["model.name"] == "mine" and run.config["model"]["source"] == "memory"
    [problem] = verify(run.folder).problems  # this process no longer holds it
    assert "model.name=mine" in problem and "is not on disk" in problem


def test_results_belong_to_its_content_and_a_sweep_has_one_model(here: Path, toy: tuple[PreTrainedModel, Any]):
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
    runs = api.sweep(model=network, tokenizer=tokenizer, finetune=["gd", "none"], **TINY)
    assert runs.varied == ("finetune.name",) and len(runs) == 2 and not runs.left_out


@pytest.mark.parametrize("network", [tiny_network("gpt2"), tiny_network("bloom"), of_family("qwen3_moe")], ids=type)
def test_what_is_measured_has_its_weights(network: PreTrainedModel):
    before, twin = state_of(network), copy_of(network)
    assert state_of(network) == before
    theirs = network.state_dict()
    assert theirs.keys() == twin.state_dict().keys()
    for name, mine in twin.state_dict().items():
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
    before, twin = state_of(model), copy_of(model)
    assert state_of(model) == before
    for name, weight in expected.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_a_half_precision_model_are_merged_in_float32(dtype: torch.dtype):
    model = adapted(tiny_network("llama").to(dtype))
    twin, tokens = copy_of(model), torch.arange(1, 9)[None]
    assert {weight.dtype for weight in model.base_model.model.lm_head.parameters()} == {dtype}
    unmerged = model.float().eval()
    unmerged.base_model.model.model.rotary_emb = copy.deepcopy(twin.model.rotary_emb)  # rounded by the cast to half
    torch.testing.assert_close(twin.eval()(tokens).logits, unmerged(tokens).logits, rtol=1e-4, atol=1e-5)


def test_what_bears_on_numbers_is_in_the_digest_and_nothing_else():
    network, tokenizer = tiny_network("llama"), tiny_tokenizer()
    inputs = inputs_of(network, tokenizer)
    assert set(inputs) >= {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    network.train().config.use_cache = False
    network.config._name_or_path = "another/name"
    network.enable_input_require_grads()
    tokenizer(["one", "two and three"], padding=True, truncation=True, max_length=3)
    assert inputs_of(network, tokenizer) == inputs
    assert inputs_of(network, tiny_tokenizer(300))["tokenizer.json"] != inputs["tokenizer.json"]
    changed = inputs_of(tiny_network("llama", rms_norm_eps=1e-3), tokenizer)
    assert {name for name in inputs if changed[name] != inputs[name]} == {"config.json"}


def hooked(network: PreTrainedModel) -> object:
    network.model.layers[0].register_forward_hook(lambda module, args, output: output * 1.5)
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


OTHER = "computes something other than its config and weights say"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked, OTHER),
        (rescaled, OTHER),
        (switched_off, OTHER),
        (injected, OTHER),
        (prompted, r"the adapters \(PROMPT_TUNING\) cannot be merged"),
        (lambda network: network.model, "got a LlamaModel; it takes a causal language model"),
        (lambda network: torch.nn.Linear(2, 2), "got a Linear; it takes a causal language model"),
        (lambda network: network.to("meta"), "could not be saved and loaded again"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: Callable[[PreTrainedModel], object], message: str):
    model = change(tiny_network("llama"))
    with pytest.raises(ConfigError, match=message), holding(model, tiny_tokenizer(VOCABULARY)):
        pass


def test_a_tokenizer_that_transformers_replaces_is_refused(toy: tuple[PreTrainedModel, Any]):
    """In a folder of the family qwen2, AutoTokenizer makes a Qwen2Tokenizer of whatever was saved."""
    with pytest.raises(
        ConfigError, match=r"makes other tokens once it is saved beside it: of 'year 2011 a11' \d+, and"
    ):
        inputs_of(tiny_network("qwen2"), toy[1])


def test_refusals(here: Path, toy: tuple[PreTrainedModel, Any]):
    with pytest.raises(ConfigError, match="in layer 0 the block's input"):
        api.run(model=toy[0], tokenizer=toy[1], model__anatomy={"added": "mlp"}, **TINY)
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        api.run(model=toy[0])
    with pytest.raises(ConfigError, match="a model that is named brings its own"):
        api.run(model="toy", tokenizer=toy[1])
    gone = ModelConfig(name="mine", source=ModelSource.memory, revision="0123")
    with pytest.raises(ConfigError, match=r"model\.name=mine .* is not on disk"):
        load(gone, RuntimeConfig())
