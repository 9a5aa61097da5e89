"""Every kind of placement gives the numbers of one device, in eight families; `make test-placement`, some minutes."""

import pytest
from accelerate import dispatch_model

from iclgd.models import placement
from iclgd.models.discovery import discover
from iclgd.models.loading import assemble
from placement_cases import FAMILIES, dealt_out, everything, furthest, placed_model, plain
from pretend_devices import pretending
from tiny_models import tiny_network

MANY = ("gd", "lcgd")


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_on_two_devices_give_the_same_numbers(family, tmp_path):
    alone = everything(assemble(tiny_network(family), None), MANY)
    with pretending():
        shared = everything(placed_model(family, tmp_path, "cpu:0", "cpu:1"), MANY)
    assert furthest(alone, plain(shared))[0] < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_weights_that_wait_in_cpu_memory_give_the_same_numbers(family, tmp_path):
    alone = everything(assemble(tiny_network(family), None), MANY)
    with pretending():
        model = placed_model(family, tmp_path, "cpu:0", "cpu")
        assert any(map(placement._hook, model.network.modules())) and str(model.device) == "cpu:0"
        shared = everything(model, MANY)
    assert furthest(alone, plain(shared))[0] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_wait_on_disk_give_the_same_numbers(family, tmp_path):
    alone = everything(assemble(tiny_network(family), None))
    network = tiny_network(family)
    names = {module: name for name, module in network.named_modules()}
    blocks = {names[block]: "disk" for block in discover(network)[0].blocks[1:]}
    others = {name: "cpu" for name in dealt_out(network, ["cpu"]) if name not in blocks}
    model = assemble(dispatch_model(network, {**others, **blocks}, offload_dir=str(tmp_path)), None)
    assert model.anatomy.output_projection(1).weight.is_meta
    assert furthest(alone, everything(model))[0] < 1e-5
    assert model.anatomy.output_projection(1).weight.is_meta


def test_an_unembedding_that_waits_on_disk_is_read_for_each_use(tmp_path):
    alone = everything(assemble(tiny_network("llama"), None), MANY)
    model = placed_model("llama", tmp_path, "cpu", "disk")
    assert model.anatomy.unembedding.weight.is_meta
    assert furthest(alone, everything(model, MANY))[0] < 1e-5
