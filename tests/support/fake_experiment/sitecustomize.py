"""Put first on PYTHONPATH, this gives every Python process, workers too, an experiment that takes milliseconds.

The command line, Hydra, its launchers and the run folders are the real ones; only the model is not there, and the table
at the end, which would import PyTorch, is one line. A run of seed N waits as long as a file `holdN` is in the folder,
and writes `heldN` beside it.
"""

import os
import sys
import time
import types

from iclgd.runs.inputs import Inputs


def run(config, folder, progress, prepared):
    advance = progress.stage("finetune", 5)
    for _ in range(5):
        time.sleep(0.02 * (config.finetune.epochs - 1))
        advance()
    while os.path.exists(f"hold{config.seed}"):
        open(f"held{config.seed}", "w").close()
        time.sleep(0.02)
    if config.seed == 13:
        raise RuntimeError("unlucky seed")
    mean = config.finetune.lr * (config.seed + 1)
    score = {"mean": mean, "layers": [mean / 2, float("nan"), mean], "n": 3, "undefined": 1, "ci": [0.0, 1.0]}
    shares = {"zsl": 0.5, "icl": 0.75, "ft": 0.625}
    accuracy = {f"accuracy/{name}": {"mean": share, "n": 8} for name, share in shares.items()}
    folder.write("environment.json", {"iclgd": {"revision": None}})
    folder.write("scores.json", {"sim_aou": score, **accuracy})
    return folder.read_json("scores.json")


experiment, console = types.ModuleType("iclgd.experiment"), types.ModuleType("iclgd.report.console")
tracking = types.ModuleType("iclgd.tracking")
tracking.log_sweep = tracking.log_run = lambda *arguments: None
experiment.run = run
console.table = lambda folders: f"table of {folders[0].name if len(folders) == 1 else f'{len(folders)} runs'}"
preparation = types.ModuleType("iclgd.evidence.preparation")
preparation.Session = object
preparation.prepare = lambda *arguments: types.SimpleNamespace(inputs=Inputs({}))
sys.modules |= {module.__name__: module for module in (experiment, console, tracking, preparation)}
