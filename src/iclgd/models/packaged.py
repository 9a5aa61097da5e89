"""The GGUF file inside a Python package, converted once to safetensors in the user's cache: it loads quickly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from iclgd.common.digests import digest_of
from iclgd.config import ModelConfig
from iclgd.models.files import converted_place, packaged_file

log = logging.getLogger(__name__)

_MANIFEST = "iclgd.json"


def converted_folder(config: ModelConfig) -> Path:
    """A folder with the model in safetensors, converted if need be."""
    source, folder = packaged_file(config), converted_place(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_whole(folder):
            if folder.exists():
                log.warning("%s is damaged and is converted again", folder)
            _convert(source, folder, digest_of(source))
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all(digest_of(folder / name) == digest for name, digest in manifest["files"].items())
    except (OSError, ValueError, KeyError, AttributeError):
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
        files = {path.name: digest_of(path) for path in temporary.iterdir()}
        (temporary / _MANIFEST).write_text(json.dumps({"source": source.name, "sha256": digest, "files": files}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
