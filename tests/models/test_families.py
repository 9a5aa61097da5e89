"""Every family has its row, its tiny model and its reference; every model file composes and its architecture runs."""

import re

import pytest

from configs import config
from iclgd.common import paths
from iclgd.models.anatomy import FAMILIES, UnsupportedModelError, dissect
from iclgd.models.loading import assemble
from iclgd.models.recorder import Question, RecordPlan, record
from tiny_models import CONFIGS, RECORDABLE, shared_model, tiny_network

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
OTHERS = {"hf", "smollm2", "toy"}  # any model; the bundled one; one trained by the project itself


def test_every_family_is_tested():
    families = {tiny_network(name).config.model_type for name in RECORDABLE}
    assert families == set(FAMILIES)


def test_every_model_file_is_listed():
    assert {file.stem for file in (paths.config_folder() / "model").glob("*.yaml")} - OTHERS == set(MODEL_FILES)


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


@pytest.mark.parametrize("family", sorted(set(MODEL_FILES.values())))
def test_architecture_of_a_model_file_runs(family):
    model = shared_model(family)
    recording = record(model, [Question((3, 4, 5), ((6,), (7,)))], (1, 8, 9), RecordPlan())
    assert recording.attention_output.shape == (1, model.layers, 32)
    assert recording.attention_output.isfinite().all() and recording.label_scores.isfinite().all()


def test_an_unknown_family_is_refused_by_name():
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = AutoConfig.for_model("mpt", d_model=16, n_heads=2, n_layers=1, vocab_size=20)
    network = AutoModelForCausalLM.from_config(settings)
    with pytest.raises(
        UnsupportedModelError, match=r"is of the family 'mpt', which iclgd does not know; it knows bloom"
    ):
        assemble(network, None)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_of_the_modules(name):
    network = tiny_network(name)
    anatomy = dissect(network)
    assert len(anatomy.blocks) == anatomy.shape.layers == network.config.num_hidden_layers
    assert anatomy.shape.heads == 4
    assert anatomy.shape.head_dim == 8
    assert anatomy.shape.window == (2048 if name.startswith("falcon") else None if name == "bloom" else 128)
    for layer in range(anatomy.shape.layers):
        attention = anatomy.attention(layer)
        projections = [attention.get_submodule(path) for path in anatomy.family.key_value]
        sizes = [anatomy.key_value_view(module.weight).numel() for module in projections]
        assert sum(sizes) == 2 * anatomy.shape.key_value_heads * anatomy.shape.head_dim * 32


@pytest.mark.parametrize("name", RECORDABLE)
def test_projections_come_apart_into_queries_keys_and_values(name):
    """What each part of a projection puts out is what attention takes it for, by the reference's own arithmetic."""
    anatomy = dissect(tiny_network(name))
    shape, sizes = anatomy.shape, {}
    for part in "qkv":
        weight = anatomy.projection(0, part).weight.data
        view = anatomy.layout.of_parameter(weight, part) if anatomy.layout else weight
        assert view.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        sizes[part] = view.numel() // (32 * shape.head_dim)
    assert sizes == {"q": shape.heads, "k": shape.key_value_heads, "v": shape.key_value_heads}
    assert anatomy.projection(0, "o") is anatomy.part(0, anatomy.family.projection)
