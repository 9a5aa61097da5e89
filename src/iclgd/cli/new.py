"""Skeletons of what users add: `iclgd new KIND NAME` writes a commented yaml, a function, and a test that runs."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

_FILES = Path(__file__).parent / "skeletons"
KINDS = {
    "metric": "iclgd --config-dir conf +metric=NAME",
    "variant": "iclgd --config-dir conf finetune=NAME",
    "objective": "iclgd --config-dir conf finetune=NAME",
    "task": "iclgd --config-dir conf task=NAME paths.data_dir=data",
    "model": "iclgd --config-dir conf model=NAME",
}


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a skeleton.

    Returns:
        The files, relative to the folder.

    Raises:
        ValueError: the kind or the name is none.
        FileExistsError: one of the files is there already; none is written then.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    kind = "objective" if kind == "variant" else kind  # a variant's own file, and the objective that it names
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} is no plain name: small letters, digits and _ only, a letter first")
    sources = sorted(path for path in (_FILES / kind).rglob("*") if path.is_file())
    targets = [
        Path(str(path.relative_to(_FILES / kind)).replace("NAME", name).removesuffix(".txt")) for path in sources
    ]
    there = [str(target) for target in targets if (folder / target).exists()]
    if there:
        raise FileExistsError(f"{', '.join(there)}: there already; choose another name, or remove it")
    for source, target in zip(sources, targets, strict=True):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(_filled(source.read_text("utf-8")).replace("NAME", name), encoding="utf-8")
    return targets


def cli(arguments: Sequence[str]) -> int:
    """The command `iclgd new`; returns the exit code."""
    if len(arguments) != 2:
        sys.stderr.write(f"usage: iclgd new {'|'.join(KINDS)} NAME\n")
        return 2
    kind, name = arguments
    try:
        written = new(kind, name, Path.cwd())
    except (ValueError, OSError) as error:
        sys.stderr.write(f"iclgd new: {error}\n")
        return 2
    sys.stdout.write("".join(f"wrote {path}\n" for path in written))
    sys.stdout.write(f"try it: python -m pytest test_{name}.py\nuse it: {KINDS[kind].replace('NAME', name)}\n")
    return 0


def _filled(text: str) -> str:
    """The text with lists of inputs that are taken from the program's own records."""
    if "#INPUTS" in text:
        text = text.replace("#INPUTS", "\n".join(f"#   {line}" for line in _inputs()))
    if "#SEQUENCE" in text:
        from iclgd.mechanisms.losses import Sequence as Tokens
        from iclgd.mechanisms.objectives import ObjectiveOptions

        text = text.replace("#SEQUENCE", _attributes(Tokens)).replace("#OPTIONS", _attributes(ObjectiveOptions))
    return text


def _inputs() -> list[str]:
    from iclgd.common.records import Recording, Trace, axes_of

    lines = []
    for prefix, record in (("SETTING", Recording), ("trace", Trace)):
        axes = axes_of(record)
        for name, meaning in _meanings(record).items():
            shape = f" [{', '.join(axes[name].split())}]" if name in axes else ""
            lines += textwrap.wrap(f"{prefix}.{name}{shape}: {meaning}", 105, subsequent_indent="    ")
    return [*lines, "labels [example]: the right option of every query; further facts stand in iclgd/evidence/facts.py"]


def _meanings(record: type) -> dict[str, str]:
    """What a record's docstring says of each attribute."""
    section = inspect.getdoc(record) or ""
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section.partition("Attributes:")[2], re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def _attributes(record: type) -> str:
    lines = []
    for name, meaning in _meanings(record).items():
        lines += textwrap.wrap(f"`{name}`: {meaning}", 100, initial_indent=" " * 12, subsequent_indent=" " * 16)
    return "\n".join(lines)
