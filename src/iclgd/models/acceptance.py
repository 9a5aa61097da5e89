"""Which files of a stranger's model are read: they are checked first, and transformers is shown nothing else."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from iclgd.common.printable import printable
from iclgd.config import ConfigError
from iclgd.models.files import CONFIGS, INDEX, TOKENIZER_JSON, TOKENIZER_OTHER, read_object
from iclgd.models.source_files import Source
from iclgd.models.strangers_config import cleaned_config, cleaned_tokenizer_config

_CONFIG, _TOKENIZER_CONFIG = CONFIGS
ELSEWHERE = (
    "without access to the hub, name a local folder: model=hf model.name=FOLDER (config, tokenizer and *.safetensors; "
    "pickled weights and a repository's own code are not read)"
)


@dataclass(frozen=True)
class AcceptedModel:
    """What of a model may be read."""

    name: str  # how messages call the model: the hub id or the folder
    # a folder that holds links to the accepted files, and its config without what is not obeyed. It is gone
    # when this object is.
    view: Path
    # the weight files by the names they have in the model's folder
    weights: Mapping[str, Path] = field(default_factory=dict)
    gguf: str | None = None  # the name of the GGUF file in `view`, if that is where the weights are
    commit: str | None = None  # the hub's commit; None for a local folder

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
    source = Source(name, revision)
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
            if INDEX in source.known:
                (view / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": source.weight_map}))
            _add_tokenizer(source, view)
    except BaseException:
        shutil.rmtree(view, ignore_errors=True)
        raise
    accepted = AcceptedModel(name, view, chosen, Path(file).name if file else None, source.commit)
    weakref.finalize(accepted, shutil.rmtree, view, ignore_errors=True)
    return accepted


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


def _add_tokenizer(source: Source, view: Path) -> None:
    if source.find(_TOKENIZER_CONFIG) is not None:
        content = cleaned_tokenizer_config(source.json(_TOKENIZER_CONFIG), source.name)
        (view / _TOKENIZER_CONFIG).write_text(json.dumps(content), encoding="utf-8")
    for name in (*TOKENIZER_JSON, *TOKENIZER_OTHER):
        path = source.find(name)
        if path is not None:
            if name in TOKENIZER_JSON:
                read_object(path, f"{source.name}: {name}")
            (view / name).symlink_to(path)
