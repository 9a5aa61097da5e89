"""Every input of a finished run is changed, one at a time, and the run started again through the command line.

Usage: mutations.py FOLDER one|two [few], with a copy of the package first on PYTHONPATH. `one` makes everything in one
process, `two` each change in a process of its own; `few` tries one change of each kind. Prints a line of JSON for each.
"""

import json
import logging
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import iclgd
from iclgd import command, experiment  # noqa: F401  loaded before anything is forked
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
    "from iclgd.learning.objectives import gd\nfrom .constants import SCALE\n\n\n"
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
    shutil.copytree(PACKAGE / "toy" / "model", MODEL)
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
    from iclgd.seeding import shuffled

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
MUTATIONS = {  # name: (change, what the log names, whether numbers must change)
    "text of a demonstration": (text(lambda old: old.split()[0] + " heron"), "the rows of toy/train.jsonl", True),
    "label of a demonstration": (row("train", label=lambda old: 1 - old), "the rows of toy/train.jsonl", True),
    "text of a query": (row("test", text=lambda old: old + " heron"), "the rows of toy/test.jsonl", True),
    "label of a query": (row("test", label=lambda old: 1 - old), "the rows of toy/test.jsonl", False),
    "two demonstrations swapped": (lines(DATA / "train.jsonl", swapped), "the rows of toy/train.jsonl", True),
    "a row less": (lines(DATA / "train.jsonl", lambda rows: rows[1:]), "the rows of toy/train.jsonl", True),
    "a row more": (lines(DATA / "test.jsonl", lambda rows: [*rows, rows[0]]), "the rows of toy/test.jsonl", True),
    "all labels turned": (
        lines(
            DATA / "train.jsonl",
            lambda rows: [json.dumps({**json.loads(r), "label": 1 - json.loads(r)["label"]}) for r in rows],
        ),
        "the rows of toy/train.jsonl",
        True,
    ),
    "rope_theta": (edit(MODEL / "config.json", "10000.0", "20000.0"), "the model's config.json", True),
    "rms_norm_eps": (edit(MODEL / "config.json", "1e-06", "1e-02"), "the model's config.json", True),
    "a token's id": (
        edit(MODEL / "tokenizer.json", '"single_word": false', '"single_word": true'),
        "the model's tokenizer.json",
        False,
    ),
    "tokenizer_config.json": (
        edit(MODEL / "tokenizer_config.json", "{", '{"padding_side": "left",'),
        "the model's tokenizer_config.json",
        False,
    ),
    "one byte of weights": (byte("one.safetensors"), "the model's one.safetensors", False),
    "one byte of a shard in a folder": (byte(SHARD), f"the model's {SHARD}", False),
    "other weights": (other_weights, f"the model's {SHARD}", True),
    "the shards' index": (
        edit(MODEL / "model.safetensors.index.json", '"metadata": {}', '"metadata": {"total_size": 1}'),
        "the model's model.safetensors.index.json",
        False,
    ),
    "one's own score": (edit(CODE / "my_metrics.py", "+ 1", "+ 2"), "my_metrics.py", True),
    "a module that it imports": (edit(CODE / "my_numbers.py", "x * FACTOR", "x / FACTOR"), "my_numbers.py", True),
    "a constant there": (edit(CODE / "my_numbers.py", "2.0", "3.0"), "my_numbers.py", True),
    "one's own objective": (
        edit(CODE / "my_package/objective.py", "*= SCALE", "/= SCALE"),
        "my_package/objective.py",
        True,
    ),
    "a constant of its package": (
        edit(CODE / "my_package/constants.py", "2.0", "9.0"),
        "my_package/constants.py",
        True,
    ),
    "the variant compared with": (
        edit(PACKAGE.parents[1] / "conf/finetune/other_task.yaml", "objective: lcgd", "objective: gd"),
        "conf/finetune/other_task.yaml",
        True,
    ),
    "the other task's rows": (
        lines(PACKAGE / "tasks/bundled/toy_other/train.jsonl", lambda rows: [r.replace(": 0}", ": 1}") for r in rows]),
        "the rows of toy_other/train.jsonl",
        False,
    ),
    "version of torch": (version("torch"), "the version of torch", False),
    "version of transformers": (version("transformers"), "the version of transformers", False),
    "version of tokenizers": (version("tokenizers"), "the version of tokenizers", False),
    "version of numpy": (version("numpy"), "the version of numpy", False),
    "precision": (recorded("dtype", "bfloat16"), "the dtype (bfloat16, now float32)", False),
    "kind of device": (recorded("device", "cuda"), "the device (cuda, now cpu)", False),
    "another run in the folder": (another_seed_in_the_same_folder, "the settings", True),
    **(own if MODE == "two" else {}),
}
HARMLESS = {
    "nothing": (arguments(), None, False),
    "files touched": (touched(DATA / "train.jsonl", MODEL / SHARD, MODEL / "config.json"), None, False),
    "data elsewhere": (data_elsewhere, None, False),
    "data as parquet": (as_parquet, None, False),
    "a row that is not drawn": (lines(DATA / "train.jsonl", undrawn), None, False),
    "a comment in one's own code": (edit(CODE / "my_metrics.py", "    return", "    # why\n    return"), None, False),
    "an unrelated file": (edit(CODE / "unrelated.py", "1", "2"), None, False),
    "a file of the model that is not read": (
        edit(MODEL / "generation_config.json", "{", '{"max_length": 7,'),
        None,
        False,
    ),
    "a seed that pretrained weights do not use": (arguments("model.weights_seed=3"), None, False),
    "another name in tables": (arguments("finetune.label=Mine"), None, False),
    "other batches and threads": (arguments("runtime.batch_tokens=64", "runtime.threads=1"), None, False),
    "a comment in this package": (
        lines(PACKAGE / "metrics/geometry.py", lambda rows: [*rows, "# why"]),
        None,
        False,
    ),
}


FEW = {
    *("text of a demonstration", "label of a query", "rope_theta", "a token's id", "one byte of a shard in a folder"),
    *("a module that it imports", "a constant of its package", "the variant compared with", "version of torch"),
    *("precision", "another run in the folder", "own metrics/geometry.py"),
    *("nothing", "files touched", "data as parquet", "a row that is not drawn", "a comment in this package"),
}


def start(outputs, given):
    ran = command.run([*given, f"paths.outputs={outputs}"], tell=False)
    if not ran.outcomes:
        return ran.message, None
    return str(ran.outcomes[0].ending), ran.outcomes[0].folder


def trial(name, change, expected, must_change, base):
    outputs = WORLD / "now"  # also moved from where it was made
    shutil.rmtree(outputs, ignore_errors=True)
    shutil.copytree(WORLD / "outputs", outputs)
    with change() as given:
        given = (
            given if any(a.startswith("paths.data_dir") for a in given) else (*given, f"paths.data_dir={DATA.parent}")
        )
        ending, folder = start(outputs, given)
    log = (folder / "run.log").read_text() if folder else ""
    scores = (folder / "scores.parquet").read_bytes() if folder and (folder / "scores.parquet").exists() else b""
    kept = folder and (folder / "earlier" / "1" / "scores.parquet")
    print(
        json.dumps(
            {
                "name": name,
                "expected": expected,
                "must_change": must_change,
                "ending": ending,
                "told": " ".join(line for line in log.splitlines() if "WARNING" in line or "ERROR" in line),
                "changed": scores != base,
                "kept": bool(kept and kept.exists() and kept.read_bytes() == base),
            }
        ),
        flush=True,
    )


def apart(call, *given):
    """Call in a process of its own where two are wanted."""
    if MODE == "one":
        return call(*given)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            call(*given)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0, given[0]


def main():
    torch.set_num_threads(1)
    sys.path.insert(0, str(CODE))
    logging.disable(logging.INFO)
    make_world()
    apart(start, WORLD / "outputs", (*ARGUMENTS, f"paths.data_dir={DATA.parent}"))
    (base,) = (WORLD / "outputs" / "single").glob("*/scores.parquet")
    content = base.read_bytes()
    for name, (change, expected, must_change) in (MUTATIONS | HARMLESS).items():
        if name in FEW or "few" not in sys.argv:
            apart(trial, name, change, expected, must_change, content)


if __name__ == "__main__":
    main()
