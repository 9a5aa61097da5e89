"""A world of files that a run is made of, and changes of one of them at a time, each put back afterwards.

`mutations.py` runs with that world's folder as its first argument.
"""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

import iclgd
from iclgd.cli import command  # noqa: F401  loaded before anything is forked
from iclgd.runs import environment

WORLD, MODE = Path(sys.argv[1]), sys.argv[2]
PACKAGE = Path(iclgd.__file__).parent
DATA, MODEL, CODE = WORLD / "data" / "toy", WORLD / "model", WORLD / "code"
SHARD = "deep/two.safetensors"
SCORE = """# @package metric.scores
mine: {function: my_metrics.mine, inputs: {icl: icl.attention_output}, label: Mine}
"""
METRIC = "from my_numbers import scaled\n\n\ndef mine(icl):\n    return scaled(icl.double().sum(-1)) + 1\n"
HELPER = "FACTOR = 2.0\n\n\ndef scaled(x):\n    return x * FACTOR\n"
OBJECTIVE = (
    "from iclgd.mechanisms.objectives import gd\nfrom .constants import SCALE\n\n\n"
    "def mine(model, sequence, options):\n    loss = gd(model, sequence, options)\n"
    "    for parameter in model.network.parameters():\n"
    "        if parameter.grad is not None:\n            parameter.grad *= SCALE\n    return loss\n"
)
ARGUMENTS = (
    *("model=hf", f"model.name={MODEL}", "model.bos='<bos>'", "model.separator='<sep>'", "task=toy", "task.source=hub"),
    *("task.shots=3", "task.queries=3", "finetune=gd", "finetune.objective=my_package.objective.mine"),
    *("metric=[sim_aou,alpha,mine]", "metric.compare_with=other_task", "tracking=none"),
    *("runtime.device=cpu", "runtime.dtype=float32"),
)


def make_world():
    DATA.mkdir(parents=True)
    for split in ("train", "test"):
        shutil.copy(PACKAGE / "tasks" / "bundled" / "toy" / f"{split}.jsonl", DATA)
    shutil.copytree(PACKAGE / "models" / "toy", MODEL)
    tensors = load_file(MODEL / "model.safetensors")
    (MODEL / "model.safetensors").unlink()
    (MODEL / "deep").mkdir()
    names = sorted(tensors)
    where = {name: SHARD if i % 2 else "one.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in names if where[name] == file}, MODEL / file, {"format": "pt"})
    (MODEL / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (PACKAGE.parents[1] / "conf" / "metric" / "mine.yaml").write_text(SCORE)
    (CODE / "my_package").mkdir(parents=True)
    for name, text in {
        "my_metrics.py": METRIC,
        "my_numbers.py": HELPER,
        "unrelated.py": "A = 1\n",
        "my_package/__init__.py": "",
        "my_package/objective.py": OBJECTIVE,
        "my_package/constants.py": "SCALE = 2.0\n",
    }.items():
        (CODE / name).write_text(text)


def edit(path, old, new):
    """A change of a text file, undone afterwards."""

    @contextmanager
    def change():
        before = path.read_text()
        assert old in before, (path, old)
        path.write_text(before.replace(old, new, 1))
        try:
            yield ARGUMENTS
        finally:
            path.write_text(before)

    return change


def lines(path, change_lines):
    @contextmanager
    def change():
        before = path.read_text()
        path.write_text("\n".join(change_lines(before.splitlines())) + "\n")
        try:
            yield ARGUMENTS
        finally:
            path.write_text(before)

    return change


def drawn(split):
    """Where the first drawn rows of a split stand."""
    from iclgd.common.seeding import shuffled

    return shuffled(96, {"train": 0, "test": 1}[split])[:3]


def row(split, **entries):
    def change_lines(rows):
        place = drawn(split)[0]
        content = json.loads(rows[place])
        rows[place] = json.dumps({**content, **{key: value(content[key]) for key, value in entries.items()}})
        return rows

    return lines(DATA / f"{split}.jsonl", change_lines)


def swapped(rows):
    first, second, *_ = drawn("train")
    rows[first], rows[second] = rows[second], rows[first]
    return rows


def undrawn(rows):
    place = next(i for i in range(96) if i not in drawn("train"))
    rows[place] = json.dumps({"text": "otter otter", "label": 0})
    return rows


def byte(name):
    """One byte of a weight file, in place, with its times put back: only the entry's own time tells."""

    @contextmanager
    def change():
        path = MODEL / name
        before, times = path.read_bytes(), path.stat()
        # the upper byte of the middle number's mantissa, or an exponent's low bit: a change that shows
        place = len(before) // 2 // 4 * 4 + 2
        with path.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([before[place] ^ 0x40]))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            yield ARGUMENTS
        finally:
            path.write_bytes(before)

    return change


@contextmanager
def other_weights():
    path, before = MODEL / SHARD, (MODEL / SHARD).read_bytes()
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, MODEL / "new", {"format": "pt"})
    os.replace(MODEL / "new", path)
    try:
        yield ARGUMENTS
    finally:
        path.write_bytes(before)


def version(package):
    @contextmanager
    def change():
        real = environment._versions
        environment._versions = lambda: {**real(), package: "9.9"}
        try:
            yield ARGUMENTS
        finally:
            environment._versions = real

    return change


def recorded(part, value):
    """As if the folder came from a machine on which a part was another one."""

    @contextmanager
    def change():
        (folder,) = (WORLD / "now" / "single").glob("*/")
        made, status = (json.loads((folder / name).read_text()) for name in ("fingerprint.json", "status.json"))
        text = json.dumps({**made, part: value})
        (folder / "fingerprint.json").write_text(text)
        from iclgd.runs import files

        digest = files.sha256(folder / "fingerprint.json")
        status["files"]["fingerprint.json"] = {"bytes": len(text), "sha256": digest}
        (folder / "status.json").write_text(json.dumps(status))
        yield ARGUMENTS

    return change


def arguments(*more):
    @contextmanager
    def change():
        yield (*ARGUMENTS, *more)

    return change


@contextmanager
def another_seed_in_the_same_folder():
    (folder,) = (WORLD / "now" / "single").glob("*/")
    yield (*ARGUMENTS, "seed=1", f"hydra.run.dir={folder}")


def touched(*paths):
    @contextmanager
    def change():
        for path in paths:
            os.utime(path)
        yield ARGUMENTS

    return change


@contextmanager
def data_elsewhere():
    shutil.copytree(WORLD / "data", WORLD / "elsewhere", dirs_exist_ok=True)
    yield (*ARGUMENTS, f"paths.data_dir={WORLD / 'elsewhere'}")


@contextmanager
def as_parquet():
    import pandas as pd

    folder = WORLD / "parquet" / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        pd.read_json(DATA / f"{split}.jsonl", lines=True).to_parquet(folder / f"{split}.parquet")
    yield (*ARGUMENTS, f"paths.data_dir={folder.parent}")


def text(change):
    return row("train", text=change)


own = {  # found when a process starts: one that runs already has the old code in memory, and its numbers
    f"own {name}": (lines(PACKAGE / name, lambda rows: [*rows, "CHANGED = 1"]), f"iclgd/{name}", False)
    for name in (
        "metrics/geometry.py",
        "learning/objectives.py",
        "models/recorder.py",
        "tasks/encoding.py",
        "evidence/gather.py",
        "seeding.py",
        "records.py",
    )
}
