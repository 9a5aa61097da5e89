"""Which files of a stranger's model are read: they are checked first, and transformers is shown nothing else."""

from __future__ import annotations

import json
import math
import shutil
import stat
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash

from iclgd.config import ConfigError
from iclgd.models.strangers_config import cleaned_config, cleaned_tokenizer_config
from iclgd.shown import printable

_CONFIG, _TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_JSON = ("tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json")
_OTHER = ("merges.txt", "tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "chat_template.jinja")
_LARGEST_JSON = 256 << 20  # bytes; the tokenizer.json of Gemma 3 has 33 MB
_FLOATS = ("F64", "F32", "F16", "BF16")
ELSEWHERE = (
    "without access to the hub, name a local folder: model=hf model.name=FOLDER (config, tokenizer and *.safetensors; "
    "pickled weights and a repository's own code are not read)"
)


@dataclass(frozen=True)
class AcceptedModel:
    """What of a model may be read.

    Attributes:
        name: how messages call the model: the hub id or the folder.
        view: a folder that holds links to the accepted files, and its config without what is not obeyed. It is gone
            when this object is.
        weights: the weight files by the names they have in the model's folder.
        gguf: the name of the GGUF file in `view`, if that is where the weights are.
        commit: the hub's commit; None for a local folder.
    """

    name: str
    view: Path
    weights: Mapping[str, Path] = field(default_factory=dict)
    gguf: str | None = None
    commit: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments for transformers' loaders."""
        place: dict[str, Any] = {"pretrained_model_name_or_path": str(self.view), "trust_remote_code": False}
        return place if self.gguf is None else {**place, "gguf_file": self.gguf}


def accept(name: str, revision: str | None = None, file: str | None = None, weights: bool = True) -> AcceptedModel:
    """Check the files of a folder or a hub repository by their names, their places and their outer form.

    Args:
        name: an existing folder or a hub id, whose files are downloaded.
        revision: of the hub repository.
        file: the GGUF file inside it, if the weights are to be read from there.
        weights: whether weights are to be read at all.

    Raises:
        ConfigError: a file is missing, is damaged, is not of an accepted kind, or leads out of its folder.
    """
    view = Path(tempfile.mkdtemp(prefix="iclgd-model-"))
    source = _Source(name, revision)
    try:
        with refusing(f"model.name={name} could not be loaded", ELSEWHERE):
            if file is None:
                (view / _CONFIG).write_text(json.dumps(cleaned_config(source.json(_CONFIG), name)), encoding="utf-8")
                chosen = source.safetensors() if weights else {}
            else:
                chosen = {file: source.file(file)}
                (view / Path(file).name).symlink_to(chosen[file])
            for shard, path in chosen.items() if file is None else ():
                (view / shard).parent.mkdir(parents=True, exist_ok=True)
                (view / shard).symlink_to(path)
            if _INDEX in source.known:
                (view / _INDEX).symlink_to(source.known[_INDEX])
            _add_tokenizer(source, view)
    except BaseException:
        shutil.rmtree(view, ignore_errors=True)
        raise
    accepted = AcceptedModel(name, view, chosen, Path(file).name if file else None, source.commit)
    weakref.finalize(accepted, shutil.rmtree, view, ignore_errors=True)
    return accepted


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that are read of a local folder: one, or those that its index names, in order.

    Raises:
        ConfigError: they are missing or damaged, or the index leads elsewhere.
    """
    return list(_Source(str(folder), None).safetensors().values())


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Inside, whatever a library makes of a stranger's file is a ConfigError that names it.

    Libraries raise anything at all on damaged files, the Rust ones even exceptions that are no `Exception`.
    """
    try:
        yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = printable(f"{error or type(error).__name__}", 400)
        raise ConfigError(f"{what}: {reason} -- {remedy}") from error


class _Source:
    """A model's folder, or its hub repository, whose files are downloaded when they are asked for."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self.local = Path(name).is_dir()
        self.commit: str | None = None
        self.known: dict[str, Path] = {}

    def find(self, name: str, needed: bool = False) -> Path | None:
        """A regular file inside the folder; None if there is none of that name (the hub's own words if it is needed)."""
        if self.local:
            path = Path(self.name) / name
            if not path.exists() and not path.is_symlink():
                return None
        else:
            quiet = {} if needed else {"_raise_exceptions_for_missing_entries": False}
            cached = cached_file(self.name, name, revision=self.revision, **quiet)
            if cached is None:
                return None
            path = Path(cached)
            self.commit = extract_commit_hash(cached, None)
        self.known[name] = self._inside(path, name)
        return self.known[name]

    def file(self, name: str) -> Path:
        """The same, which has to be there."""
        path = self.find(name, needed=True)
        if path is None:
            kinds = "config.json, a tokenizer and model.safetensors or *.gguf"
            raise ConfigError(f"model.name={self.name} has no {printable(name)}; a model consists of {kinds}")
        return path

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        return read_object(self.file(name), f"{self.name}: {name}")

    def safetensors(self) -> dict[str, Path]:
        """The weight files by name, with headers that agree with the index."""
        if self.find(_WEIGHTS) is not None:
            shards: dict[str, Path] = {_WEIGHTS: self.known[_WEIGHTS]}
            index: dict[str, str] | None = None
        elif self.find(_INDEX) is not None:
            index = _weight_map(self.json(_INDEX), self.name)
            shards = {shard: self.file(shard) for shard in sorted(set(index.values()))}
        else:
            raise ConfigError(
                f"model.name={self.name} could not be loaded: it has no {_WEIGHTS} and no {_INDEX}, and pickled "
                "weights are not read; where its hub repository has a pull request with safetensors, "
                "model.revision=refs/pr/N names it"
            )
        for shard, path in shards.items():
            wanted = None if index is None else {key for key, place in index.items() if place == shard}
            _check_header(path, f"{self.name}: {shard}", wanted)
        return shards

    def _inside(self, path: Path, name: str) -> Path:
        """The real place of a file; a hub's snapshot consists of links into the same repository's blobs."""
        real, folder = path.resolve(), Path(path.parents[len(PurePosixPath(name).parts) - 1]).resolve()
        blobs = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
        if not any(real.is_relative_to(allowed) for allowed in (folder, *blobs)):
            raise ConfigError(
                f"{self.name}: {printable(name)} is a link that leads out of the folder: put the file itself there"
            )
        if not real.exists() or not stat.S_ISREG(real.stat().st_mode):
            raise ConfigError(f"{self.name}: {printable(name)} is no regular file")
        return real


def read_object(path: Path, name: str) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ConfigError: it is none, or too large; the message names the file.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ConfigError(f"{name} has {path.stat().st_size:,} bytes, more than the {_LARGEST_JSON:,} that are read")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is no JSON: {printable(str(error), 200)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{name} holds a JSON {type(content).__name__}, not an object")
    return content


def _weight_map(index: Mapping[str, Any], name: str) -> dict[str, str]:
    entries = index.get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"{name}: {_INDEX} has no weight_map from tensors to files")
    if not isinstance(index.get("metadata", {}), dict):
        raise ConfigError(f"{name}: metadata in {_INDEX} is no object")
    for tensor, shard in entries.items():
        plain = isinstance(shard, str) and "\\" not in shard and "\0" not in shard and shard.endswith(".safetensors")
        if not plain or PurePosixPath(shard).is_absolute() or ".." in PurePosixPath(shard).parts:
            raise ConfigError(
                f"{name}: {_INDEX} keeps {printable(tensor)} in {printable(str(shard))!r}; only *.safetensors files "
                "inside the folder are read"
            )
    return entries


def _check_header(path: Path, name: str, wanted: set[str] | None) -> None:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as tensors:  # reads and checks the header only
            keys = set(tensors.keys())
            foreign = [key for key in keys if tensors.get_slice(key).get_dtype() not in (*_FLOATS, "BOOL", "U8")]
    except Exception as error:  # safetensors has a class of its own for every version
        raise ConfigError(f"{name} cannot be read as safetensors: {printable(str(error), 200)}") from error
    if foreign:
        raise ConfigError(f"{name} holds {listed(foreign)} in a form that is no float: quantised weights are not read")
    if wanted is not None and keys != wanted:
        differ = listed(keys ^ wanted)
        raise ConfigError(f"{name} and {_INDEX} do not agree on which tensors the file holds: {differ}")


def _add_tokenizer(source: _Source, view: Path) -> None:
    if source.find(_TOKENIZER_CONFIG) is not None:
        content = cleaned_tokenizer_config(source.json(_TOKENIZER_CONFIG))
        (view / _TOKENIZER_CONFIG).write_text(json.dumps(content), encoding="utf-8")
    for name in (*_JSON, *_OTHER):
        path = source.find(name)
        if path is not None:
            if name in _JSON:
                read_object(path, f"{source.name}: {name}")
            (view / name).symlink_to(path)


def refuse_incomplete(network: PreTrainedModel, info: Mapping[str, Any], name: str) -> None:
    """Refuse a model some of whose weights would be random, or were left over.

    Args:
        network: as loaded.
        info: what `from_pretrained(output_loading_info=True)` said of it.
        name: of the model.

    Raises:
        ConfigError: naming the weights.
    """
    mismatched = sorted(f"{key} (file {tuple(a)}, config {tuple(b)})" for key, a, b in info["mismatched_keys"])
    said = {
        "are missing": sorted(info["missing_keys"]),
        "belong to no part of the model": sorted(info["unexpected_keys"]),
        "have another shape": mismatched,
        "are not finite": [key for key, weight in network.named_parameters() if not _is_finite(weight)],
        "were not loaded": [key for key, weight in network.named_parameters() if _is_absent(network, weight)],
    }
    wrong = [f"weights that {what}: {listed(keys)}" for what, keys in said.items() if keys]
    if wrong:
        raise ConfigError(
            f"model.name={name} does not fit its config.json, or is damaged: {'; '.join(wrong)}; get the files again"
        )


def refuse_oversized(network: PreTrainedModel, accepted: AcceptedModel) -> None:
    """Refuse, before memory is taken, a config that speaks of far more weights than the files can hold.

    Args:
        network: made of the config on the meta device.
        accepted: the files.

    Raises:
        ConfigError: naming both numbers.
    """
    described = sum(weight.numel() for weight in network.parameters())
    bits = 8 * sum(path.stat().st_size for path in accepted.weights.values())
    if described > bits // (1 if accepted.gguf else 16):  # no float has fewer than 16 bits; GGUF packs tighter
        raise ConfigError(
            f"model.name={accepted.name}: its config speaks of {described:,} weights, but its files of {bits // 8:,} "
            "bytes cannot hold so many"
        )


def listed(names: Any) -> str:
    """Some of the names, in order, fit for a message."""
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(printable(name) for name in ordered[:5]) + more


def _is_finite(weight: torch.Tensor) -> bool:
    if weight.is_meta or not weight.numel():
        return True
    low, high = torch.aminmax(weight.detach())  # NaN is passed on by both, without a copy as large as the weights
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _is_absent(network: PreTrainedModel, weight: torch.Tensor) -> bool:
    return weight.is_meta and not hasattr(network, "hf_device_map")
