"""Runs in a process whose address space is limited, as by `ulimit -v`: short queries, one far too long, short ones.

Prints how each ended, after one without the limit. The limit is set when all is loaded and threads have started, so
that what is left is known whatever the machine and the build of PyTorch.
"""

import json
import resource
import sys
from pathlib import Path

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from configs import config
from iclgd import experiment
from iclgd.runs.execute import execute
from tiny import tiny_tokenizer

LEFT = 224 * 2**20  # bytes beyond what is loaded
WIDE = 16384  # of the feed-forward part: 64 KB a token in each of its tensors
CHEAP = ("tracking=none", "task.shots=2", "metric=[sim_aou,accuracy]", "runtime.cache=off")


def _wide_model(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    sizes = dict(hidden_size=16, intermediate_size=WIDE, num_hidden_layers=2, num_attention_heads=2)
    shape = dict(num_key_value_heads=2, max_position_embeddings=2**16, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rows(folder: Path, name: str, words: int) -> None:
    (folder / name).mkdir(parents=True)
    for split, count, length in (("train", 8, 4), ("validation", 40, words)):
        rows = [json.dumps({"sentence": f"{i} " + "good " * length, "label": i % 2}) for i in range(count)]
        (folder / name / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def main(folder: Path) -> None:
    """Make a model and data, and run."""
    _wide_model(folder / "model")
    _rows(folder / "short", "sst2", 30)
    _rows(folder / "long", "sst2", 4000)
    common = ("model=hf", f"model.name={folder / 'model'}", "task=sst2", "runtime.threads=1", *CHEAP)

    def run(name: str, data: str, *more: str) -> tuple[str, str]:
        settings = config(*common, f"paths.data_dir={folder / data}", *more)
        outcome = execute(settings, folder / "runs" / name, experiment.run)
        return str(outcome.ending), outcome.message or ""

    whole = ("task.queries=40", "runtime.batch_tokens=100000")
    endings = [run("ample", "short", "task.queries=40")]
    limit = psutil.Process().memory_info().vms + LEFT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    endings += [run("scarce", "short", *whole), run("never", "long", "task.queries=1"), run("next", "short", *whole)]
    sys.stdout.write(json.dumps(endings) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
