"""What a run's numbers are made of, by content and not by name, in parts that can be named when one has changed.

Nothing here loads a model: rows are drawn as text, and files are hashed once (`iclgd.common.digests`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from iclgd.common import paths
from iclgd.common.digests import Stamp, digest_of_text, is_settled, stamp_of
from iclgd.config import Config, FinetuneConfig, as_dict
from iclgd.config.variants import STATIC, reference_config, variant
from iclgd.models.files import model_inputs
from iclgd.runs.environment import computing_versions
from iclgd.runs.identity import LOOKS, canonical, run_id
from iclgd.runs.source_code import own_code, user_code
from iclgd.tasks import draw
from iclgd.tasks.draw import inputs_of
from iclgd.tasks.wording import Example

_TRAINING = ("iclgd/mechanisms/", "iclgd/evidence/", "iclgd/common/seeding")
_INTERVALS = "limits and shares of scores"  # intervals follow from them, but a run is not named by them
_PLACE = re.compile(r", (?:line|row) \d+$")

_draws: dict[str, tuple[dict[Path, Stamp], Fingerprint]] = {}


@dataclass(frozen=True)
class Fingerprint:
    """What a run is made of."""

    parts: dict[str, Any]  # the content of fingerprint.json: a digest, or a plain value, by part
    # how a part is called where its name does not say it, such as "the rows of sst2/train.jsonl"
    words: dict[str, str]

    def __or__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint({**self.parts, **other.parts}, {**self.words, **other.words})


def fingerprint(config: Config) -> Fingerprint:
    """The inputs of a run as they are now.

    Raises:
        ConfigError: data or a model that is not there or cannot be used.
        OSError: a file cannot be read, or the hub cannot be reached.
    """
    settings = as_dict(config)
    parts = Fingerprint({"settings": run_id(settings), **runtime_parts(config)}, {}) | _rows(config) | _model(config)
    finetunes = [settings["finetune"]]
    for name, other, sample in _others(config):
        own = as_dict(other)["finetune"]
        finetunes.append({key: value for key, value in own.items() if key not in LOOKS["finetune"]})
        parts |= Fingerprint({name: _digest(finetunes[-1])}, {name: f"conf/finetune/{own['name']}.yaml"})
        parts |= _rows(other, sample)
    scores = settings["metric"]["scores"]
    parts |= Fingerprint({_INTERVALS: _digest({name: [s["limits"], s["share"]] for name, s in scores.items()})}, {})
    functions = [score["function"] for score in scores.values()]
    named = sorted({*_dotted(functions), *(path for finetune in finetunes for path in _functions(finetune))})
    return parts | Fingerprint({f"code {file}": digest for file, digest in (own_code() | user_code(named)).items()}, {})


def _others(config: Config) -> Iterator[tuple[str, Config, int]]:
    """Of each other variant that numbers come from: a part's name, the run with it, its sample of demonstrations."""
    names = [config.metric.compare_with, STATIC if "static_changes" in inputs_of(config) else None]
    for name in filter(None, names):
        yield f"variant {name}", variant(config, name), 0
    reference = reference_config(config)
    if reference is not config:
        yield f"reference {config.reference.name}", reference, config.reference.draw


def training_code(finetune: Mapping[str, Any]) -> dict[str, str]:
    """Digests by file of the code that finetunes as these settings say: this package's, and the user's."""
    own = {file: digest for file, digest in own_code().items() if file.startswith(_TRAINING)}
    return own | user_code(sorted(set(_functions(finetune))))


def runtime_parts(config: Config) -> dict[str, str]:
    """The precision, the kind of device and the versions that a run is made with."""
    device = config.runtime.device
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = config.runtime.dtype
    if dtype in ("auto", "model"):
        from iclgd.models.loading import resolve_dtype

        dtype = str(resolve_dtype(dtype, config.model)).removeprefix("torch.")
    versions = {f"version of {name}": version for name, version in computing_versions().items()}
    return {"dtype": dtype, "device": device.partition(":")[0], **versions}


def changes(before: Mapping[str, Any], now: Fingerprint) -> list[str]:
    """The parts in which a stored fingerprint differs from now's, in words."""
    differing = [name for name in {**now.parts, **before} if before.get(name) != now.parts.get(name)]
    return [_in_words(name, before.get(name), now) for name in differing]


def _in_words(name: str, before: Any, now: Fingerprint) -> str:
    kind, _, rest = name.partition(" ")
    word = now.words.get(name) or (rest if kind == "code" else f"the {name}")
    if name in ("dtype", "device") or kind == "version":
        return f"{word} ({before}, now {now.parts.get(name)})"
    if before is None or name not in now.parts:
        return f"{word} ({'new' if before is None else 'no longer there'})"
    return word


def _functions(finetune: Mapping[str, Any]) -> Iterator[str]:
    """The dotted paths of what a variant trains with: objectives, and the optimiser's class."""
    return _dotted([finetune.get(key) for key in ("objective", "norm_of", "optimizer")])


def _dotted(settings: Any) -> Iterator[str]:
    """Every value that may be a dotted path to a function."""
    if isinstance(settings, str) and "." in settings:
        yield settings
    elif isinstance(settings, list | dict):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from _dotted(value)


def _digest(content: Any) -> str:
    return digest_of_text(canonical(content))


def _model(config: Config) -> Fingerprint:
    inputs = model_inputs(config.model)
    if "commit" in inputs:
        return Fingerprint({"model commit": inputs["commit"]}, {"model commit": f"the commit of {config.model.name}"})
    parts = {f"model {name}": digest for name, digest in inputs.items()}
    return Fingerprint(parts, {f"model {name}": f"the model's {name}" for name in inputs})


def _rows(config: Config, sample: int = 0) -> Fingerprint:
    """What is drawn, as text, in the run's or a further sample; drawn again only if a file may have changed since."""
    chosen = {name: getattr(config.finetune, name) for name in ("data", "other_task", "procedure", "calibration")}
    finetune = replace(FinetuneConfig(name="", lr=1.0), **chosen)
    settings = as_dict(replace(config, finetune=finetune))
    fitted = "static_changes" in inputs_of(config)  # to rows of its own
    other = config.finetune.other_task
    yaml = None if other is None else paths.config_files("task").get(other, Path(other).expanduser())
    key = canonical([*(settings[name] for name in ("task", "finetune", "paths", "seed")), str(yaml), fitted, sample])
    stamps, known = _draws.get(key, ({}, None))
    if known is not None and all(_same(path, stamp) for path, stamp in stamps.items()):
        return known
    drawn = draw(config, sample)
    task, further = config.task, f", sample {sample}" if sample else ""
    groups = {
        f"demonstrations of {task.name}/{task.train_split}{further}": drawn.demonstrations,
        f"queries of {task.name}/{task.eval_split}": drawn.queries,
    }
    if drawn.training is not None:
        source = config.finetune.other_task or task.name
        groups[f"training rows of {source}, {config.finetune.data}{further}"] = drawn.training
    if drawn.calibration:
        groups[f"calibration rows of {task.name}/{task.train_split}{further}"] = drawn.calibration
    parts = {name: _digest([_content(example) for example in rows]) for name, rows in groups.items()}
    wording = {name: getattr(drawn, name) for name in ("label_words", "description", "separator")}
    parts[f"wording of {task.name}"] = _digest(wording)
    found = Fingerprint(parts, {name: f"the rows of {_short(_origin(rows))} ({name})" for name, rows in groups.items()})
    files = {Path(_origin(rows)) for rows in groups.values()}
    if all(file.is_file() for file in files):
        files |= {yaml} if yaml else set()
        # a new file in a folder may be read instead
        folders = {folder for file in files for folder in list(file.parents)[:2]}
        seen = {path: stamp_of(path) for path in files | folders if path.exists()}
        if all(map(is_settled, seen.values())):
            _draws[key] = (seen, found)
    return found


def _content(example: Example) -> dict[str, Any]:
    return {name: value for name, value in asdict(example).items() if name != "where"}


def _same(path: Path, stamp: Stamp) -> bool:
    try:
        return stamp_of(path) == stamp
    except OSError:
        return False


def _origin(rows: Sequence[Example]) -> str:
    """The file, or the hub's split, that rows come from."""
    return _PLACE.sub("", rows[0].where)


def _short(origin: str) -> str:
    return "/".join(Path(origin).parts[-2:]) if Path(origin).is_file() else origin
