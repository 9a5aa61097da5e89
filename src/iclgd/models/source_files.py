"""The files of a model's folder or hub repository: where they lie, of what kind they are, what their headers say."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils.hub import cached_file, extract_commit_hash

from iclgd.common.printable import printable
from iclgd.config import ConfigError
from iclgd.models.files import INDEX, WEIGHTS, read_object, weight_map

_FLOATS = ("F64", "F32", "F16", "BF16")
_BUFFERS = re.compile(r"(^|\.)(attn|attention)(\.attention)?\.(masked_)?bias$|(^|\.)position_ids$")  # masks, numbers


class Source:
    """A model's folder, or its hub repository, whose files are downloaded when they are asked for."""

    def __init__(self, name: str, revision: str | None) -> None:
        self.name, self.revision = name, revision
        self.local = Path(name).is_dir()
        self.commit: str | None = None
        self.known: dict[str, Path] = {}
        self.weight_map: dict[str, str] = {}

    def find(self, name: str, needed: bool = False) -> Path | None:
        """A regular file inside the folder; None if there is none of that name.

        Where it is needed, the hub's own exception says why it is not there.
        """
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
        if self.find(WEIGHTS) is not None:
            shards = {WEIGHTS: self.known[WEIGHTS]}
        elif self.find(INDEX) is not None:
            self.weight_map = weight_map(self.json(INDEX), f"{self.name}: {INDEX}")
            shards = {shard: self.file(shard) for shard in sorted(set(self.weight_map.values()))}
        else:
            raise ConfigError(
                f"model.name={self.name} could not be loaded: it has no {WEIGHTS} and no {INDEX}, and pickled "
                "weights are not read; where its hub repository has a pull request with safetensors, "
                "model.revision=refs/pr/N names it"
            )
        for shard, path in shards.items():
            keys = _checked_header(path, f"{self.name}: {shard}")
            wanted = {key for key, place in self.weight_map.items() if place == shard}
            if self.weight_map and keys != wanted:
                differ = listed(keys ^ wanted)
                raise ConfigError(f"{self.name}: {shard} and {INDEX} do not agree on what the file holds: {differ}")
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


def _checked_header(path: Path, name: str) -> set[str]:
    """The names of the tensors in a file."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as tensors:  # reads and checks the header only
            kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}
    except Exception as error:  # safetensors has a class of its own
        raise ConfigError(f"{name} cannot be read as safetensors: {printable(str(error), 200)}") from error
    foreign = [key for key, kind in kinds.items() if kind not in _FLOATS and not _BUFFERS.search(key)]
    if foreign:
        raise ConfigError(f"{name} holds {listed(foreign)} in a form that is no float: quantised weights are not read")
    return set(kinds)


def listed(names: Iterable[object]) -> str:
    """Some of the names, in order, fit for a message."""
    ordered = sorted(map(str, names))
    more = f" and {len(ordered) - 5} more" if len(ordered) > 5 else ""
    return ", ".join(printable(name) for name in ordered[:5]) + more
