"""Run folders that a stranger might hand over: each is a whole finished run with one thing changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from iclgd.runs.identity import run_id
from report_fixtures import write_run

STATUS, SCORES, CONFIG, PROMPTS, ENVIRONMENT = (
    *("status.json", "scores.json", "config.yaml", "prompts.json"),
    "environment.json",
)
VALUES = "scores.parquet"
SHOWN = {"examples": 4, "layers": 2}


def write_sealed(folder: Path, **settings: Any) -> Path:
    """A whole run, with its id and the digests of its files in status.json as real runs have them."""
    write_run(folder, **{**SHOWN, **settings})
    return seal(folder)


def seal(folder: Path) -> Path:
    """Note the id that the config gives, and the digests of the files as they are."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(folder.iterdir())
        if path.name != STATUS and path.is_file()
    }
    status = json.loads((folder / STATUS).read_text())
    config = yaml.safe_load((folder / CONFIG).read_text())
    (folder / STATUS).write_text(json.dumps({**status, "run_id": run_id(config), "files": files}))
    return folder


@dataclass(frozen=True)
class Case:
    """One change.

    Attributes:
        damage: makes it; gets the folder, beside which lie `good` (another run) and `outside` (no run).
        reason: a regular expression that the reason matches for which the run is left out; None where it counts.
    """

    damage: Callable[[Path], Any]
    reason: str | None


def put(name: str, content: bytes | str) -> Callable[[Path], Any]:
    written = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(written)


def edit(name: str, change: Callable[[dict[str, Any]], Any], sealed: bool = True) -> Callable[[Path], Any]:
    """Change a JSON or YAML file; its digest then is noted anew, so that only its content is wrong."""

    def damage(folder: Path) -> None:
        path = folder / name
        content = yaml.safe_load(path.read_text()) if name == CONFIG else json.loads(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content) if name == CONFIG else json.dumps(content))
        if sealed and name != STATUS:
            unseal(folder)

    return damage


def unseal(folder: Path) -> None:
    status = json.loads((folder / STATUS).read_text())
    status.pop("files", None)
    (folder / STATUS).write_text(json.dumps(status))


def unsealed(damage: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: (unseal(folder), damage(folder))


def link(name: str, target: str) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(folder / target)

    return damage


def pipe(name: str) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def directory(name: str) -> Callable[[Path], Any]:
    return lambda folder: ((folder / name).unlink(), (folder / name).mkdir())


def gone(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: put(name, (folder / name).read_bytes()[:-20])(folder)


def status(**entries: Any) -> Callable[[Path], Any]:
    return edit(STATUS, lambda content: content.update(entries))


def score(**entries: Any) -> Callable[[Path], Any]:
    return edit(SCORES, lambda content: content["sim_aou"].update(entries))


def config(section: str, **entries: Any) -> Callable[[Path], Any]:
    return edit(CONFIG, lambda content: content[section].update(entries))


def values(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        change(pd.read_parquet(folder / VALUES)).to_parquet(folder / VALUES)
        unseal(folder)

    return damage


def claims_another(folder: Path) -> None:
    good = json.loads((folder.parent / "good" / STATUS).read_text())
    status(run_id=good["run_id"])(folder)


def is_another(folder: Path) -> None:
    """The good run's settings and id, with other scores."""
    for name in (CONFIG, STATUS):
        shutil.copy(folder.parent / "good" / name, folder / name)
    unseal(folder)


def far_apart(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(example=range(len(frame)), layer=range(len(frame)))


def digit(folder: Path) -> None:
    """One digit of a score, as a bad disk would change it."""
    text = (folder / SCORES).read_text()
    at = text.index("0.", text.index("mean")) + 2
    (folder / SCORES).write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def bomb(folder: Path) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 12):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n"
    unsealed(put(CONFIG, text))(folder)


DEEP = b'{"state": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
NESTED = '{"state": "done", "a": ' + '{"a": ' * 300 + "1" + "}" * 301
ESCAPES = (
    "\x1b[2J\x1b]0;owned\x07[/red][bold]\u202e</script><script>window.pwned = 1</script><img src=x onerror=pwned=2>"
)

CASES: dict[str, Case] = {
    # status.json
    "status: no bytes": Case(put(STATUS, ""), "status.json cannot be read"),
    "status: noise": Case(put(STATUS, b"\xff\xfe\x00"), "status.json cannot be read"),
    "status: a list": Case(put(STATUS, "[]"), "status.json is a list"),
    "status: deep": Case(put(STATUS, DEEP), "status.json cannot be read|nested deeper"),
    "status: nested": Case(put(STATUS, NESTED), "nested deeper than 40"),
    "status: large": Case(put(STATUS, b" " * (5 << 20)), "more than the"),
    "status: a pipe": Case(pipe(STATUS), "is no regular file"),
    "status: a link": Case(link(STATUS, "../good/status.json"), "status.json is a link"),
    "status: a device": Case(link(STATUS, "/dev/zero"), "status.json is a link"),
    "status: no state": Case(edit(STATUS, lambda content: content.pop("state")), "has no state"),
    "state: unknown": Case(status(state="perhaps"), "status.json.state is 'perhaps'"),
    "state: a list": Case(status(state=["done"]), "status.json.state is a list"),
    "state: failed of escapes": Case(status(state="failed", error=ESCAPES), "is failed"),
    "run_id: a list": Case(status(run_id=["x"]), "status.json.run_id is a list"),
    "run_id: an object": Case(status(run_id={"a": 1}), "status.json.run_id is a dict"),
    "run_id: another run's": Case(claims_another, "claims the id .* of another run"),
    "run_id: escapes": Case(status(run_id=ESCAPES), None),
    "files: a list of numbers": Case(status(files=[1]), "status.json.files is a list"),
    "files: no sizes": Case(status(files={SCORES: {}}), "has no bytes"),
    "files: elsewhere": Case(status(files={"../outside/secret": {"bytes": 6, "sha256": ""}}), "path inside"),
    "files: other digests": Case(
        edit(STATUS, lambda content: content["files"][SCORES].update(sha256="0" * 64)), "is not what the"
    ),
    "files: other sizes": Case(edit(STATUS, lambda c: c["files"][VALUES].update(bytes=7)), "is not what the"),
    "seconds: a text": Case(status(seconds="long"), "status.json.seconds is 'long'"),
    "seconds: NaN": Case(put(STATUS, '{"state": "done", "seconds": NaN}'), "NaN is no number"),
    "seconds: beyond floats": Case(put(STATUS, '{"state": "done", "seconds": 1e400}'), "holds inf, which is no number"),
    "attempt: a text": Case(status(attempt="1"), "status.json.attempt"),
    "attempt: beyond integers": Case(status(attempt=10**30), "which is too large"),
    "owner: a number": Case(status(owner=5), "status.json.owner is 5"),
    "owner: of text": Case(status(state="running", owner={"host": "x", "pid": "y"}), "owner.pid is 'y'"),
    "progress: odd": Case(status(state="running", progress={"stage": 1}), "status.json.progress"),
    "started: escapes": Case(status(started_at=ESCAPES), None),
    "diverged: a text": Case(status(diverged="perhaps"), "status.json.diverged"),
    # scores.json
    "scores: gone": Case(gone(SCORES), "scores.json is missing"),
    "scores: cut": Case(cut(SCORES), "scores.json is not what"),
    "scores: cut, and no digests": Case(unsealed(cut(SCORES)), "scores.json cannot be read"),
    "scores: a digit": Case(digit, "scores.json is not what the finished run wrote"),
    "scores: a pipe": Case(pipe(SCORES), "scores.json"),
    "scores: a folder": Case(directory(SCORES), "scores.json"),
    "scores: a list": Case(unsealed(put(SCORES, "[1]")), "scores.json is a list"),
    "scores: deep": Case(unsealed(put(SCORES, DEEP)), "scores.json"),
    "mean: a text": Case(score(mean="0.5"), "scores.json.sim_aou.mean is '0.5'"),
    "mean: a list": Case(score(mean=[0.5]), "scores.json.sim_aou.mean is a list"),
    "mean: beyond floats": Case(unsealed(put(SCORES, '{"a": {"mean": 1e400}}')), "holds inf, which is no number"),
    "mean: infinite": Case(unsealed(put(SCORES, '{"a": {"mean": Infinity}}')), "Infinity is no number"),
    "mean: gone": Case(edit(SCORES, lambda content: content["sim_aou"].pop("mean")), "sim_aou has no mean"),
    "n: infinite": Case(unsealed(put(SCORES, '{"a": {"mean": 1, "n": Infinity}}')), "Infinity is no number"),
    "n: less than none": Case(score(n=-1), "scores.json.sim_aou.n is -1"),
    "n: a list": Case(score(n=[1]), "scores.json.sim_aou.n is a list"),
    "ci: a number": Case(score(ci=0.5), "scores.json.sim_aou.ci is 0.5"),
    "ci: three": Case(score(ci=[1, 2, 3]), "ci is a list, not a list of 2"),
    "layers: a number": Case(score(layers=3), "scores.json.sim_aou.layers is 3"),
    "layers: of texts": Case(score(layers=["x", "y"]), r"layers\[0\] is 'x'"),
    "layers: a million": Case(score(layers=[0.1] * 1_000_000), "layers has 1,000,000 parts"),
    "flipped: a number": Case(score(flipped=1), "scores.json.sim_aou.flipped is 1"),
    "an entry: a number": Case(edit(SCORES, lambda content: content.update(sim_aou=1)), "scores.json.sim_aou is 1"),
    # config.yaml
    "config: gone": Case(gone(CONFIG), "config.yaml is missing"),
    "config: noise": Case(unsealed(put(CONFIG, b"\xff\xfe\x00\x01")), "config.yaml cannot be read"),
    "config: a text": Case(unsealed(put(CONFIG, "hello")), "config.yaml is 'hello'"),
    "config: aliases": Case(bomb, "config.yaml has aliases"),
    "config: an alias of itself": Case(unsealed(put(CONFIG, "a: &a [*a]")), "config.yaml has aliases"),
    "config: deep": Case(unsealed(put(CONFIG, "[" * 5000 + "]" * 5000)), "nested deeper"),
    "config: nodes": Case(unsealed(put(CONFIG, "[" + "1," * 500_000 + "]")), "nodes"),
    "config: Python": Case(unsealed(put(CONFIG, "a: !!python/object/apply:os.system ['true']")), "config.yaml"),
    "config: a date": Case(unsealed(put(CONFIG, "a: 2020-01-01")), "holds a date"),
    "config: no date": Case(unsealed(put(CONFIG, "a: 2020-13-99")), "config.yaml"),
    "config: a set": Case(unsealed(put(CONFIG, "a: !!set {x, y}")), "holds a set"),
    "config: a pipe": Case(pipe(CONFIG), "config.yaml"),
    "config: no model": Case(edit(CONFIG, lambda content: content.pop("model")), "config.yaml has no model"),
    "config: a model of text": Case(
        edit(CONFIG, lambda content: content.update(model="x")), "config.yaml.model is 'x'"
    ),
    "lr: NaN": Case(config("finetune", lr=float("nan")), "config.yaml holds nan"),
    "lr: a list": Case(config("finetune", lr=[1]), "config.yaml.finetune.lr is a list"),
    "lr: a text": Case(config("finetune", lr="fast"), "config.yaml.finetune.lr is 'fast'"),
    "seed: infinite": Case(edit(CONFIG, lambda content: content.update(seed=float("inf"))), "config.yaml holds inf"),
    "seed: an object": Case(edit(CONFIG, lambda content: content.update(seed={"a": 1})), "config.yaml.seed is a dict"),
    "shots: a text": Case(config("task", shots="8"), "config.yaml.task.shots is '8'"),
    "name: a list": Case(config("task", name=["x"]), "config.yaml.task.name is a list"),
    "layers: a range without end": Case(config("finetune", layers="0-99999999999"), "config.yaml"),
    "layers: an object": Case(config("finetune", layers={"a": 1}), "config.yaml"),
    "scores: of the config, a list": Case(config("metric", scores=[1]), "config.yaml.metric.scores is a list"),
    "limits: three": Case(config("metric", scores={"sim_aou": {"limits": [1, 2, 3]}}), "limits is a list"),
    "a score that no config names": Case(edit(SCORES, lambda c: c.update(odd={"mean": 0.1, "n": 4})), None),
    # the other files
    "environment: gone": Case(gone(ENVIRONMENT), "environment.json is missing"),
    "environment: a list": Case(unsealed(put(ENVIRONMENT, "[]")), "environment.json is a list"),
    "dtype: an object": Case(edit(ENVIRONMENT, lambda c: c.update(dtype={"a": 1})), "environment.json.dtype is a dict"),
    "prompts: cut": Case(cut(PROMPTS), "prompts.json is not what"),
    "prompts: cut, and no digests": Case(unsealed(cut(PROMPTS)), None),
    "prompts: a pipe": Case(unsealed(pipe(PROMPTS)), None),
    "prompts: odd": Case(edit(PROMPTS, lambda content: content.update(queries=[[1]])), None),
    "prompts: escapes": Case(edit(PROMPTS, lambda content: content["queries"][0].update(text=ESCAPES)), None),
    "values: cut": Case(cut(VALUES), "scores.parquet is not what"),
    "values: cut, and no digests": Case(unsealed(cut(VALUES)), None),
    "values: a pipe": Case(unsealed(pipe(VALUES)), None),
    "values: repeated rows": Case(values(lambda frame: pd.concat([frame, frame])), None),
    "values: other columns": Case(values(lambda frame: frame.rename(columns={"layer": "depth"})), None),
    "values: texts": Case(values(lambda frame: frame.astype({"value": str})), None),
    "values: far apart": Case(
        values(lambda frame: frame.assign(example=range(len(frame)), layer=range(len(frame)))), None
    ),
    "values: no rows": Case(values(lambda frame: frame[:0]), None),
    # places
    "is another run": Case(is_another, "is the same run as .* though its scores are others"),
    "a log elsewhere": Case(link("run.log", "../outside/secret"), None),
    "figures elsewhere": Case(link("figures", "../outside"), None),
    "a report elsewhere": Case(link("report", "../outside"), None),
    "a claim elsewhere": Case(link(".claim", "../outside/secret"), None),
}
