"""Model folders that a stranger might hand over: each is a whole tiny model with one thing changed."""

from __future__ import annotations

import json
import os
import shutil
import struct
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

    damage: Callable[[Path], None]
    refused: str | None
    file: str | None = None


def edited(name: str, **entries: Any) -> Callable[[Path], None]:
    """Change fields of a JSON file, which need not be there."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **entries}))

    return damage


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the tensors."""

    def damage(folder: Path) -> None:
        tensors = {key: value.clone() for key, value in load_file(folder / WEIGHTS).items()}
        change(tensors)  # its value is of no matter
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return damage


def config(**entries: Any) -> Callable[[Path], None]:
    return edited(CONFIG, **entries)


def tokens(**entries: Any) -> Callable[[Path], None]:
    return edited("tokenizer_config.json", **entries)


def poisoned(name: str, value: float) -> Callable[[Path], None]:
    return weights(lambda tensors: tensors[name][3].fill_(value))


def sharded(
    place: Callable[[int, str], str] = lambda number, _: f"part-{number}.safetensors",
    claim: Callable[[dict[str, Any]], Any] = lambda index: index,
) -> Callable[[Path], None]:
    """Two shards and their index.

    Args:
        place: where the index says a tensor is, by the shard it is in and its name; `part-N` files always exist.
        claim: changes the index before it is written.
    """

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        parts: dict[str, dict[str, torch.Tensor]] = {}
        index = {}
        for position, (name, tensor) in enumerate(tensors.items()):
            number = position % 2
            parts.setdefault(f"part-{number}.safetensors", {})[name] = tensor
            index[name] = place(number, name)
        for name, part in parts.items():
            save_file(part, folder / name, {"format": "pt"})
        for real in set(index.values()):
            if "/" in real and ".." not in real and (folder / Path(real).name).exists():
                (folder / real).parent.mkdir(exist_ok=True)
                shutil.copy(folder / Path(real).name, folder / real)
        (folder / INDEX).write_text(json.dumps(claim({"metadata": {"total_size": 1}, "weight_map": index})))

    return damage


def linked(name: str, target: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / target)

    return damage


def fifo(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: [damage(folder) for damage in damages] and None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def header(entries: dict[str, Any], length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(64)


def foreign_token(folder: Path) -> None:
    """A word of the prompts gets an id that the model does not have."""
    content = json.loads((folder / TOKENIZER).read_text())
    content["added_tokens"].append(
        {
            "id": 384,
            "content": " terrible",
            "special": False,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
    )
    (folder / TOKENIZER).write_text(json.dumps(content))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / PICKLE)


def pickle_renamed(folder: Path) -> None:
    (folder / PICKLE).rename(folder / WEIGHTS)


def odd_map(index: dict[str, Any]) -> dict[str, Any]:
    return {**index, "weight_map": dict.fromkeys(index["weight_map"], 1)}


def code(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('ran')")


def renamed_to_layer(number: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q.replace(".1.", f".{number}.")] = tensors.pop(Q)

    return change


DEEP = b"[" * 100_000 + b"]" * 100_000
NESTED = b'{"model_type": "llama", "x": ' + b'{"x": ' * 500 + b"1" + b"}" * 501
LLAMA_AS_GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 16}
TEXT_IDS = {"type": "BPE", "vocab": {"a": "b"}, "merges": []}
GGUF = "x.gguf"
AUTO_MAP = {"AutoConfig": "mine.A", "AutoModelForCausalLM": "mine.B", "AutoTokenizer": ["mine.C", None]}

CASES: dict[str, Case] = {
    # weights that are not what the config says
    "a weight is missing": Case(weights(lambda t: t.pop(Q)), "weights that are missing: .*q_proj"),
    "all weights are missing": Case(weights(dict.clear), "cannot hold so many"),
    "embedding is missing": Case(weights(lambda t: t.pop("model.embed_tokens.weight")), "embed_tokens"),
    "unembedding is missing": Case(weights(lambda t: t.pop("lm_head.weight")), "lm_head"),
    "a weight too many": Case(weights(lambda t: t.update(evil=torch.zeros(3))), "belong to no part .*evil"),
    "a weight of a layer that is not": Case(weights(renamed_to_layer(7)), r"missing: .*layers\.1.*no part.*layers\.7"),
    "another shape": Case(weights(lambda t: t.update({Q: t[Q][:-4].clone()})), "another shape: .*q_proj"),
    "NaN in a weight": Case(poisoned(Q, float("nan")), "not finite: .*q_proj"),
    "infinity in an embedding": Case(poisoned("model.embed_tokens.weight", float("inf")), "not finite: .*embed"),
    "integers for weights": Case(weights(lambda t: t.update({Q: t[Q].to(torch.int8)})), "q_proj.* no float"),
    "eight-bit floats": Case(weights(lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})), "q_proj.* no float"),
    "bytes for weights": Case(weights(lambda t: t.update({Q: t[Q].to(torch.uint8)})), "q_proj.* no float"),
    "more layers than weights": Case(config(num_hidden_layers=6), "cannot hold so many|missing"),
    "fewer layers than weights": Case(config(num_hidden_layers=1), "no part of the model"),
    "another family": Case(config(**LLAMA_AS_GPT2), "missing"),
    "wider than its weights": Case(config(hidden_size=32, head_dim=8), "cannot hold so many|another shape"),
    "a vocabulary that fills memory": Case(config(vocab_size=1 << 23), "cannot hold so many"),
    "heads that fill memory": Case(config(head_dim=1 << 24), "cannot hold so many"),
    "tied, and yet two embeddings": Case(config(tie_word_embeddings=True), None),
    # files that are no weights
    "cut in the middle": Case(cut(WEIGHTS, 0.5), "cannot be read as safetensors"),
    "cut at the end": Case(cut(WEIGHTS, 0.999), "cannot be read as safetensors"),
    "empty": Case(replaced(WEIGHTS, b""), "cannot be read as safetensors"),
    "a header without end": Case(replaced(WEIGHTS, header({}, 1 << 60)), "cannot be read as safetensors"),
    "a header of noise": Case(replaced(WEIGHTS, struct.pack("<Q", 9) + b"\xff" * 99), "cannot be read as safetensors"),
    "tensors that overlap": Case(
        replaced(WEIGHTS, header({k: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for k in "ab"})),
        "cannot be read as safetensors",
    ),
    "only pickled weights": Case(both(pickled, without(WEIGHTS)), "pickled weights are not read"),
    "pickled under another name": Case(both(pickled, pickle_renamed), "safetensors"),
    "a pipe for weights": Case(fifo(WEIGHTS), "is no regular file"),
    "a device for weights": Case(linked(WEIGHTS, "/dev/zero"), "leads out of the folder"),
    "a folder for weights": Case(both(without(WEIGHTS), lambda f: (f / WEIGHTS).mkdir()), "is no regular file"),
    "weights elsewhere": Case(linked(WEIGHTS, "../outside/model.safetensors"), "leads out of the folder"),
    # shards
    "two shards": Case(sharded(), None),
    "shards in a folder": Case(sharded(lambda n, _: f"deep/part-{n}.safetensors"), None),
    "an index that climbs": Case(sharded(lambda *_: "../outside/model.safetensors"), "inside the folder"),
    "an index that climbs back": Case(sharded(lambda *_: "deep/../../outside/model.safetensors"), "inside the folder"),
    "an index to a root": Case(sharded(lambda *_: "/etc/model.safetensors"), "inside the folder"),
    "an index to a pickle": Case(both(pickled, sharded(lambda *_: PICKLE)), r"pytorch_model\.bin"),
    "an index to a link": Case(
        both(sharded(lambda *_: "w.safetensors"), linked("w.safetensors", "../outside/model.safetensors")), "leads out"
    ),
    "an index to a linked folder": Case(
        both(linked("deep", "../outside"), sharded(lambda *_: "deep/model.safetensors")), "leads out"
    ),
    "an index to nothing": Case(sharded(lambda *_: "gone.safetensors"), "has no gone"),
    "an index of a wrong shard": Case(sharded(lambda n, _: f"part-{1 - n}.safetensors"), "do not agree"),
    "an index without map": Case(sharded(claim=lambda _: {}), "no weight_map"),
    "an index with a list": Case(sharded(claim=lambda _: {"weight_map": [1]}), "no weight_map"),
    "an index with numbers": Case(sharded(claim=odd_map), "'1'"),
    "an index with odd metadata": Case(sharded(claim=lambda index: {**index, "metadata": 5}), None),
    "an index without metadata": Case(sharded(claim=lambda index: {"weight_map": index["weight_map"]}), None),
    # configs that want to be obeyed
    "a kernel for attention": Case(config(_attn_implementation="owner/kernel"), None),
    "another attention": Case(config(attn_implementation="sdpa", _attn_implementation_internal="x/y"), None),
    "kernels": Case(config(use_kernels=True, kernel_config={"RMSNorm": "x/y:Z"}, fusion_config={"a": 1}), None),
    "quantised by its word": Case(config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantised by gptq"),
    "code of its own": Case(both(code, config(auto_map=AUTO_MAP), tokens(auto_map=AUTO_MAP)), None),
    "weights named by the config": Case(config(transformers_weights="../outside/model.safetensors"), None),
    "fields that are methods": Case(config(to_dict=1, base_model_tp_plan={"*": "x"}, validate=3), None),
    "a dtype of its own": Case(config(dtype="int8", torch_dtype=["x"]), None),
    "an adapter": Case(edited("adapter_config.json", base_model_name_or_path="../outside", peft_type="LORA"), None),
    "a broken generation config": Case(replaced("generation_config.json", b"{"), None),
    "a distributed checkpoint beside": Case(replaced("shard-00000-model-00000-of-00001.safetensors", b"x"), None),
    # configs that are wrong
    "no config": Case(without(CONFIG), r"has no config\.json"),
    "config: a list": Case(replaced(CONFIG, b"[1]"), r"config\.json holds a JSON list"),
    "config: no JSON": Case(replaced(CONFIG, b"\xff\xfe{"), r"config\.json is no JSON"),
    "config: deep": Case(replaced(CONFIG, DEEP), r"config\.json is no JSON"),
    "config: nested": Case(replaced(CONFIG, NESTED), "nested more than"),
    "config: a pipe": Case(fifo(CONFIG), "is no regular file"),
    "config: elsewhere": Case(linked(CONFIG, "../outside/config.json"), "leads out of the folder"),
    "model_type: a list": Case(config(model_type=["llama"]), "no model_type that is a text"),
    "model_type: a path": Case(config(model_type="../../x"), "does not know"),
    "vocab_size: text": Case(config(vocab_size="384"), "vocab_size"),
    "vocab_size: a list": Case(config(vocab_size=[384]), "vocab_size"),
    "hidden_size: negative": Case(config(hidden_size=-16), "hidden_size"),
    "layers: a thousand million": Case(config(num_hidden_layers=10**9), "num_hidden_layers .* expected 1 to"),
    "layers: true": Case(config(num_hidden_layers=True), "num_hidden_layers"),
    "heads: none": Case(config(num_attention_heads=0), "num_attention_heads|could not be loaded"),
    "heads: three for two": Case(config(num_attention_heads=3), "could not be loaded|heads|shape"),
    "positions: text": Case(config(max_position_embeddings="128"), "max_position_embeddings"),
    "positions: fewer than none": Case(config(max_position_embeddings=-1), "max_position_embeddings"),
    "activation: unknown": Case(config(hidden_act="no_such"), "no_such"),
    "rope: a list": Case(config(rope_parameters=[1]), "rope"),
    "rope: unknown": Case(config(rope_parameters={"rope_type": "no_such", "rope_theta": 1.0}), "no_such"),
    "padding beyond the vocabulary": Case(config(pad_token_id=10**6), "could not be loaded"),
    # tokenizers
    "no tokenizer": Case(both(without(TOKENIZER), without("tokenizer_config.json")), "tokenizer"),
    "tokenizer: no JSON": Case(replaced(TOKENIZER, b"{"), r"tokenizer\.json is no JSON"),
    "tokenizer: a list": Case(replaced(TOKENIZER, b"[]"), r"tokenizer\.json holds a JSON list"),
    "tokenizer: empty": Case(replaced(TOKENIZER, b"{}"), "tokenizer"),
    "tokenizer: deep": Case(replaced(TOKENIZER, b'{"model": ' + DEEP + b"}"), r"tokenizer\.json is no JSON"),
    "tokenizer: a pipe": Case(fifo(TOKENIZER), "is no regular file"),
    "tokenizer: no model": Case(edited(TOKENIZER, model=None), "tokenizer"),
    "tokenizer: ids that are texts": Case(edited(TOKENIZER, model=TEXT_IDS), "tokenizer"),
    "tokenizer: files elsewhere": Case(tokens(tokenizer_file="/etc/passwd", vocab_file="/x"), None),
    "tokenizer: odd added tokens": Case(tokens(added_tokens_decoder={"x": 1}), "tokenizer"),
    "tokenizer: a class of a number": Case(tokens(tokenizer_class=7), "tokenizer|None"),
    # GGUF
    "GGUF: empty": Case(replaced(GGUF, b""), r"could not be loaded", GGUF),
    "GGUF: noise": Case(replaced(GGUF, b"GGUF" + b"\xff" * 200), "could not be loaded", GGUF),
    "GGUF: a header alone": Case(replaced(GGUF, b"GGUF" + struct.pack("<IQQ", 3, 0, 0)), "could not be", GGUF),
    "GGUF: counts without end": Case(replaced(GGUF, b"GGUF" + struct.pack("<IQQ", 3, 1, 1 << 62)), "could", GGUF),
    "GGUF: elsewhere": Case(linked(GGUF, "../outside/model.safetensors"), "leads out", GGUF),
    "GGUF: a pipe": Case(fifo(GGUF), "is no regular file", GGUF),
    "GGUF: gone": Case(lambda folder: None, r"x\.gguf", GGUF),
}
