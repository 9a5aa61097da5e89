"""Model folders that a stranger might hand over: each is a whole tiny model with one thing changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tiny import tiny_tokenizer
from tiny_models import tiny_network

SHAPE = dict(
    vocab_size=384, hidden_size=16, intermediate_size=16, head_dim=4, num_hidden_layers=2, max_position_embeddings=512
)
WEIGHTS, INDEX, CONFIG, TOKENIZER = "model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"
PICKLE = "pytorch_model.bin"
Q = "model.layers.1.self_attn.q_proj.weight"

Damage = Callable[[Path], object]


def write_model(folder: Path) -> Path:
    """A whole model of two layers with its tokenizer."""
    tiny_network("llama", **SHAPE).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Case:
    """One change.

    Attributes:
        damage: makes it; gets the model's folder, beside which a folder `outside` holds other, whole weights.
        refused: a regular expression that the refusal matches; None where the model loads as if nothing were changed.
        file: `model.file`.
    """

    damage: Damage
    refused: str | None
    file: str | None = None


def edited(name: str, **fields: Any) -> Damage:
    """Change fields of a JSON file, which need not be there."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **fields}))

    return damage


def replaced(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change the tensors."""

    def damage(folder: Path) -> None:
        tensors = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return damage


def config(**fields: Any) -> Damage:
    return edited(CONFIG, **fields)


def sharded(place: str = "part-{}.safetensors", **index: Any) -> Damage:
    """Two shards, which an index says are at `place`; other fields of the index replace its own."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        parts = [dict(list(tensors.items())[number::2]) for number in range(2)]
        for number, part in enumerate(parts):
            path = folder / ("deep" if "deep" in place else "") / f"part-{number}.safetensors"
            path.parent.mkdir(exist_ok=True)
            save_file(part, path, {"format": "pt"})
        places = {name: place.format(number) for number, part in enumerate(parts) for name in part}
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places, **index}))

    return damage


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def halved(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def foreign_token(folder: Path) -> None:
    """A word of the prompts gets an id that the model does not have."""
    content = json.loads((folder / TOKENIZER).read_text())
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": 384, "content": " terrible", **flags})
    (folder / TOKENIZER).write_text(json.dumps(content))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)


def code(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('ran')")


LLAMA_AS_GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 16}
GGUF = "x.gguf"
AUTO_MAP = {"AutoConfig": "mine.A", "AutoModelForCausalLM": "mine.B", "AutoTokenizer": ["mine.C", None]}

CASES: dict[str, Case] = {
    "a weight is missing": Case(weights(lambda t: t.pop(Q)), "weights that are missing: .*q_proj"),
    "a weight too many": Case(weights(lambda t: t.update(evil=torch.zeros(3))), "belong to no part .*evil"),
    "another shape": Case(weights(lambda t: t.update({Q: t[Q][:-4].clone()})), "another shape: .*q_proj"),
    "NaN in a weight": Case(weights(lambda t: t[Q][3].fill_(torch.nan)), "not finite: .*q_proj"),
    "more layers than weights": Case(config(num_hidden_layers=6), "cannot hold so many|missing"),
    "fewer layers than weights": Case(config(num_hidden_layers=1), "no part of the model"),
    "another family": Case(config(**LLAMA_AS_GPT2), "missing"),
    "tied, and yet two embeddings": Case(config(tie_word_embeddings=True), None),
    "cut in the middle": Case(halved, "could not be loaded.*files are damaged"),
    "empty": Case(replaced(WEIGHTS, b""), "could not be loaded.*files are damaged"),
    "only pickled weights": Case(both(pickled, without(WEIGHTS)), "pickled weights are not read"),
    "two shards": Case(sharded(), None),
    "shards in a folder": Case(sharded("deep/part-{}.safetensors"), None),
    "an index that climbs": Case(sharded("../outside/model.safetensors"), "inside the folder"),
    "an index to a pickle": Case(both(pickled, sharded(PICKLE)), r"pytorch_model\.bin"),
    "an index to nothing": Case(sharded("gone.safetensors"), "has no gone"),
    "an index without map": Case(sharded(weight_map=None), "no weight_map"),
    "a kernel for attention": Case(config(_attn_implementation="owner/kernel"), None),
    "kernels": Case(
        config(use_kernels=True, kernel_config={"RMSNorm": "x/y:Z"}, fusion_config={"a": 1}),
        "from elsewhere .use_kernels, kernel_config",
    ),
    "quantised by its word": Case(config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised by gptq"),
    "code of its own": Case(
        both(code, config(auto_map=AUTO_MAP), edited("tokenizer_config.json", auto_map=AUTO_MAP)), None
    ),
    "code of an unknown family": Case(both(code, config(model_type="mine", auto_map=AUTO_MAP)), "of the family 'mine'"),
    "weights named by the config": Case(
        config(transformers_weights="../outside/model.safetensors"), "from elsewhere .transformers_weights"
    ),
    "an adapter": Case(
        edited("adapter_config.json", base_model_name_or_path="../outside", peft_type="LORA"), "an adapter"
    ),
    "no config": Case(without(CONFIG), r"has no config\.json"),
    "config: a list": Case(replaced(CONFIG, b"[1]"), r"config\.json holds a JSON list"),
    "config: no JSON": Case(replaced(CONFIG, b"\xff\xfe{"), r"config\.json is not JSON"),
    "model_type: a list": Case(config(model_type=["llama"]), "is of the family"),
    "activation: unknown": Case(config(hidden_act="no_such"), "no_such"),
    "no tokenizer": Case(both(without(TOKENIZER), without("tokenizer_config.json")), "tokenizer"),
    "tokenizer: no JSON": Case(replaced(TOKENIZER, b"{"), "the tokenizer of .* could not be loaded"),
    "GGUF: noise": Case(replaced(GGUF, b"GGUF" + b"\xff" * 200), "could not be loaded", GGUF),
    "GGUF: gone": Case(lambda folder: None, r"x\.gguf", GGUF),
}
