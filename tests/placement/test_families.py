"""Every kind of placement gives the numbers of one device, in eight families; `make test-placement`, some minutes."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from accelerate import dispatch_model

from iclgd.models import offload
from iclgd.models.anatomy import dissect
from iclgd.models.loading import assemble
from iclgd.models.placement import dealt_out
from placement.placement_cases import FAMILIES, everything, furthest, placed_model, plain
from placement.pretend_devices import pretending
from placement.together import FOLLOWERS, only_run, same_as_alone, torchrun
from tiny_models import tiny_network

MANY = ("gd", "lcgd")
HERE = Path(__file__).parent


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
        assert any(map(offload._hook, model.network.modules())) and str(model.device) == "cpu:0"
        shared = everything(model, MANY)
    assert furthest(alone, plain(shared))[0] < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_wait_on_disk_give_the_same_numbers(family, tmp_path):
    alone = everything(assemble(tiny_network(family), None))
    network = tiny_network(family)
    names = {module: name for name, module in network.named_modules()}
    blocks = {names[block]: "disk" for block in dissect(network).blocks[1:]}
    others = {name: "cpu" for name in dealt_out(network, ["cpu"]) if name not in blocks}
    model = assemble(dispatch_model(network, {**others, **blocks}, offload_dir=str(tmp_path)), None)
    assert model.anatomy.part(1, model.anatomy.family.projection).weight.is_meta
    assert furthest(alone, everything(model))[0] < 1e-5
    assert model.anatomy.part(1, model.anatomy.family.projection).weight.is_meta


def test_an_unembedding_that_waits_on_disk_is_read_for_each_use(tmp_path):
    alone = everything(assemble(tiny_network("llama"), None), MANY)
    model = placed_model("llama", tmp_path, "cpu", "disk")
    assert model.anatomy.unembedding.weight.is_meta
    assert furthest(alone, everything(model, MANY))[0] < 1e-5


def split_over(count, *families):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1] / "src")]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", "split_over_processes.py"]
    done = subprocess.run(
        [*command, *families], cwd=HERE, env=environment, capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split()[:2] for line in done.stdout.splitlines())


@pytest.mark.parametrize(("count", "families"), [(2, FAMILIES), (4, ("gpt_neox", "bloom", "phi"))])
def test_matrices_split_over_processes_give_the_same_numbers(count, families):
    differences = split_over(count, *families)
    assert set(differences) == set(families)
    assert max(map(float, differences.values())) < 1e-5, differences


def test_processes_that_share_a_model_take_smaller_batches_together(tmp_path):
    done = torchrun(tmp_path, str(FOLLOWERS), PRETEND="memory")
    assert done.returncode == 0, done.stderr[-3000:]
    run = only_run(tmp_path)
    assert "out of memory: a batch of 6 is halved" in (run.path / "run.log").read_text()
    same_as_alone(run, tmp_path)


def test_a_process_that_fails_ends_all(tmp_path):
    ended = torchrun(tmp_path, str(FOLLOWERS), PRETEND="crash")
    assert ended.returncode != 0 and "pretended" in ended.stderr
    assert not only_run(tmp_path).is_done()
    left = [
        p for p in psutil.process_iter(["cmdline"]) if f"paths.outputs={tmp_path}/outputs" in (p.info["cmdline"] or [])
    ]
    assert not left
