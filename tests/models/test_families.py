"""The parts of every family are found; every model file composes and its architecture runs."""

import re

import pytest
import torch

from configs import config
from families.tiny import tiny_network as of_family
from iclgd.common import paths
from iclgd.models.discovery import discover
from tiny_models import CONFIGS, RECORDABLE, tiny_network

MODEL_FILES = {
    **{f"fairseq_dense_{size}": "xglm" for size in ("125m", "355m", "1_3b", "2_7b", "6_7b", "13b")},
    **{f"gpt2{size}": "gpt2" for size in ("", "_medium", "_large", "_xl")},
    **{f"pythia_{size}": "gpt_neox" for size in ("70m", "160m", "410m", "1b", "1_4b", "2_8b", "6_9b", "12b")},
    **{f"opt_{size}": "opt" for size in ("125m", "1_3b", "6_7b")},
    "llama_3_2_1b": "llama",
    "qwen2_5_0_5b": "qwen2",
    "qwen3_0_6b": "qwen3",
    "gemma_3_270m": "gemma3_text",
    "olmo2_1b": "olmo2",
    **{f"smollm2_{size}": "llama" for size in ("135m", "360m", "1_7b")},
}
OTHERS = {"hf", "smollm2", "toy", "toy_plane"}  # any model; the bundled one; trained by the project itself


def test_every_model_file_is_listed():
    assert {file.stem for file in (paths.config_folder() / "model").glob("*.yaml")} - OTHERS == set(MODEL_FILES)
    assert set(MODEL_FILES.values()) <= set(RECORDABLE)


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_file_composes(name):
    model = config(f"model={name}").model
    assert re.fullmatch(r"[\w-]+/[\w.-]+", model.name)
    assert model.revision is None or re.fullmatch("[0-9a-f]{40}", model.revision)
    assert model.dtype in ("float32", "float16", "bfloat16")
    assert model.bos
    assert model.separator == ("</s>" if name.startswith("fairseq") else "\n")
    if name.startswith("fairseq"):
        assert model.bos == "<s>"


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_are_those_of_the_modules(name):
    network = tiny_network(name)
    anatomy, _ = discover(network)
    shape = anatomy.shape
    assert len(anatomy.blocks) == shape.layers == network.config.num_hidden_layers
    assert (shape.heads, shape.head_dim) == (4, 8)
    assert shape.window == (2048 if name.startswith("falcon") else None if name == "bloom" else 128)
    for layer in range(shape.layers):
        sizes = {
            part: sum(len(projection.outputs()) for projection in anatomy.layers[layer].projections[part])
            for part in "qkvo"
        }
        heads = {"falcon": 2, "falcon_multi_query": 1}.get(
            name, getattr(network.config, "num_key_value_heads", None) or 4
        )
        assert sizes == {"q": 32, "k": 8 * heads, "v": 8 * heads, "o": 32}


def test_rows_of_fused_projections_are_those_of_the_familys_layout():
    """By the layouts in which the families' code splits what the projection puts out."""
    vector = torch.arange(96) // 8  # the vector that a row is part of
    layouts = {
        "gpt2": (vector < 4, (vector >= 4) & (vector < 8), vector >= 8),  # queries, keys, values
        "gpt_neox": (vector % 3 == 0, vector % 3 == 1, vector % 3 == 2),  # of each head in turn
        "bloom": (vector % 3 == 0, vector % 3 == 1, vector % 3 == 2),
        "falcon": (vector % 4 < 2, vector % 4 == 2, vector % 4 == 3),  # two queries for each key and value
        "phi3": (vector < 4, (vector >= 4) & (vector < 6), vector >= 6),
        "falcon_multi_query": (vector < 4, vector == 4, vector == 5),
    }
    for name, masks in layouts.items():
        anatomy, _ = discover(tiny_network(name))
        for part, mask in zip("qkv", masks, strict=True):
            (projection,) = anatomy.layers[1].projections[part]
            assert projection.outputs().max() < 96
            assert torch.equal(projection.outputs(), mask.nonzero().squeeze(1)[: len(projection.outputs())])


def test_positions_of_a_decoder_of_speech_are_bounded():
    assert discover(of_family("whisper"))[0].shape.window == 448
