"""How much memory a run needs, estimated from its settings and the model's config.json before weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import psutil
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from iclgd.config import Config, ConfigError
from iclgd.config.bounds import parse_layers
from iclgd.config.enumerations import Placement
from iclgd.mechanisms.parameters import trained_parameters
from iclgd.models.anatomy import LanguageModel
from iclgd.models.loading import read_config, resolve_device, resolve_dtype
from iclgd.models.products import stored_dtype

GB = 1e9
_TRAINING = ("gradient_descent", "activation_match", "priming", "context_distillation")
_LENGTH = 40  # tokens of a query or demonstration: before a tokenizer is read, a sentence or two


@dataclass(frozen=True)
class Estimate:
    """What a run needs; sizes in GB."""

    weights: float  # of the model as it is stored
    activations: float  # of the largest pass, with the logits
    records: float  # recordings in CPU memory
    device: str  # where the model is to lie
    free: float  # on that device
    trained: float = 0.0  # copies, gradients and optimiser state of what is trained; known once the model is loaded

    def __str__(self) -> str:
        """One line."""
        return (
            f"estimate: {self.weights + self.activations:.3f} GB on {self.device} without training (weights "
            f"{self.weights:.3f}, activations {self.activations:.3f}), recordings {self.records:.3f} GB; "
            f"{self.free:.1f} GB are free"
        )


def estimate(config: Config) -> Estimate:
    """What a run needs on this machine."""
    device = resolve_device(config.runtime.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return estimate_of(read_config(config.model), config, str(device), free / GB)


def refuse_too_large(needs: Estimate, config: Config) -> None:
    """Refuse a run whose weights alone do not fit on its device."""
    if config.runtime.placement is Placement.single and needs.weights > needs.free:
        raise ConfigError(
            f"{needs.device} has {needs.free:.1f} GB free, but the model has {needs.weights:.1f} GB of weights: set "
            "runtime.placement=auto (several GPUs, CPU memory, disk) or runtime.dtype=float32_from_bfloat16"
        )


def estimate_of(settings: PretrainedConfig, config: Config, device: str, free: float) -> Estimate:
    """The same for an architecture on a device with `free` GB; sizes are counted on a network without weights."""
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    used = resolve_dtype(config.runtime.dtype, config.model)
    stored = stored_dtype(config.runtime.dtype, used)
    weights = sum(parameter.numel() for parameter in network.parameters()) * stored.itemsize
    text = network.config.get_text_config()
    # attention outputs and scores of every query and layer, in three float32 recordings
    each = text.hidden_size + _heads(text) * _LENGTH
    records = 3 * 4 * config.task.queries * text.num_hidden_layers * each
    activations = _activations(network, config, device, used)
    return Estimate(weights / GB, activations / GB, records / GB, device, free)


def training(needs: Estimate, model: LanguageModel, config: Config) -> Estimate:
    """The same with what training needs of the model, now that it is there."""
    if config.finetune.mechanism not in _TRAINING:
        return needs
    moments = 0 if config.finetune.optimizer == "sgd" else 8  # Adam's
    size = 0
    for item in trained_parameters(model, config.finetune.trainable, parse_layers(config.finetune.layers)):
        copies = 4 if item.parameter.itemsize == 2 else 0  # of half weights in float32
        each = 2 * model.dtype.itemsize + 4 + copies + moments  # what it was, its gradient, its change
        size += item.parameter.numel() * each
    return replace(needs, trained=size / GB)


def _heads(text: PretrainedConfig) -> int:
    """How many heads a layer has; 1 where no layer has attention (Mamba)."""
    return int(getattr(text, "num_attention_heads", None) or 1)


def _activations(network: PreTrainedModel, config: Config, device: str, used: torch.dtype) -> float:
    """Bytes of the largest pass: what one token has in a block, the context's keys and values, and the logits."""
    text, words = network.config.get_text_config(), network.get_input_embeddings().weight
    matrices = [weight for weight in network.parameters() if weight.ndim == 2 and weight.shape != words.shape]
    layers, heads = text.num_hidden_layers, _heads(text)
    width = 4 * text.hidden_size + sum(max(weight.shape) for weight in matrices) // layers
    tokens = config.runtime.batch_tokens or (512 if device == "cpu" else 16384)
    key_size = (getattr(text, "num_key_value_heads", None) or heads) * text.hidden_size // heads
    context = config.task.shots * _LENGTH * layers * 2 * key_size
    logits = 2 * max(1, tokens // _LENGTH) * text.vocab_size * 4
    recording = (tokens * width + context) * used.itemsize + logits
    training = 2 * max(layers * _LENGTH, 512) * width * used.itemsize
    return max(recording, training)
