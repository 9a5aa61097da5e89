"""Put first on PYTHONPATH, this gives every Python process, workers too, an experiment that takes milliseconds.

The command line, Hydra, its launchers and the run folders are the real ones; only the model is not there.
"""

import sys
import time
import types


def run(config, folder, progress):
    advance = progress.stage("finetune", 5)
    for _ in range(5):
        time.sleep(0.02)
        advance()
    if config.seed == 13:
        raise RuntimeError("unlucky seed")
    mean = config.finetune.lr * (config.seed + 1)
    score = {"mean": mean, "layers": [mean / 2, float("nan"), mean], "n": 3, "undefined": 1, "ci": [0.0, 1.0]}
    accuracy = {"zsl": 0.5, "icl": 0.75, "ft": 0.625, "n": 8}
    folder.write_json("environment.json", {"iclgd": {"revision": None}})
    folder.write_json("scores.json", {"sim_aou": score, "accuracy": accuracy})
    return folder.read_json("scores.json")


sys.modules["iclgd.experiment"] = types.ModuleType("iclgd.experiment")
sys.modules["iclgd.experiment"].run = run
