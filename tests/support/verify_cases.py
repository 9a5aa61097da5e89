"""A small run that iclgd-verify checks, and edits of it whose digests are signed anew."""

import json

import pandas as pd
import pytest

from configs import config
from iclgd import experiment
from iclgd.evidence.preparation import prepare
from iclgd.runs import files
from iclgd.runs.execute import Ending, execute
from iclgd.verify.check import TOLERANCE

SCORES = (
    "sim_am_delta_by_head,sim_aou,sim_aou_norm,sim_aou_random,sim_am,sim_am_zsl,sim_am_delta,accuracy,rec2ftp,gradient_norm,"
    "weight_update_norm,label_agreement,total_variation"
)


SMALL = (
    *("model=toy", "task=toy", "tracking=none", "task.queries=3", "task.shots=3"),
    *("runtime.cache=off", "runtime.dtype=float32", "runtime.device=cpu", f"metric=[{SCORES}]", "finetune.lr=0.05"),
)


def made(path, *overrides):
    outcome = execute(config(*SMALL, *overrides), path, experiment.run, prepare)
    assert outcome.ending is Ending.done, outcome.message
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with its recordings, of which the others are copies."""
    place = tmp_path_factory.mktemp("whole") / "run"
    return made(place, "finetune=lcgd", "runtime.save_recordings=true")


def assert_holds(verdict, naive=True):
    assert verdict.problems == []
    assert verdict.scores and all(line.own <= TOLERANCE for line in verdict.scores)
    for line in verdict.scores:
        # without context layer 0 sees the same keys: its SimAM_delta is the cosine of rounding
        assert not naive or line.naive is not None
        assert line.naive is None or line.naive <= TOLERANCE or line.score.startswith("sim_am_delta"), line


def sign(folder, name):
    """Write an edited file's digest where the true one was."""
    status = json.loads((folder / "status.json").read_text())
    status["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
    (folder / "status.json").write_text(json.dumps(status))


def edited_json(name, change):
    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
        sign(folder, name)

    return edit


def edited_scores(change):
    def edit(folder):
        frame = pd.read_parquet(folder / "scores.parquet")
        change(frame).to_parquet(folder / "scores.parquet", index=False)
        sign(folder, "scores.parquet")

    return edit


def edited_table(name, **change):
    def edit(folder):
        pd.read_parquet(folder / name).assign(**change).to_parquet(folder / name, index=False)
        sign(folder, name)

    return edit
