"""Every input of a finished run is changed, one at a time, and the run started again through the command line.

Usage: mutations.py FOLDER one|two [few], with a copy of the package first on PYTHONPATH. `one` makes everything in one
process, `two` each change in a process of its own; `few` tries one change of each kind. Prints a line of JSON for each.
"""

import json
import logging
import os
import shutil
import sys

import torch

from iclgd.cli import command
from mutation_changes import (
    ARGUMENTS,
    CODE,
    DATA,
    MODE,
    MODEL,
    PACKAGE,
    SHARD,
    WORLD,
    another_seed_in_the_same_folder,
    arguments,
    as_parquet,
    byte,
    data_elsewhere,
    edit,
    lines,
    make_world,
    other_weights,
    own,
    recorded,
    row,
    swapped,
    text,
    touched,
    undrawn,
    version,
)

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
    "a score's limits": (arguments("metric.scores.mine.limits=[-9,9]"), "the limits and shares of scores", False),
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
    "another name of a score": (arguments("metric.scores.mine.label=Other"), None, False),
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
