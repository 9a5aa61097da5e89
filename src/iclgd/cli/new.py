"""Skeletons of what users add: `iclgd new KIND NAME` writes a commented yaml, a function, and a test that runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from iclgd.common.paths import config_folder

_FILES = Path(__file__).parent / "skeletons"
KINDS = {
    "metric": "iclgd --config-dir conf +metric=NAME",
    "variant": "iclgd --config-dir conf finetune=NAME",
    "objective": "iclgd --config-dir conf finetune=NAME",
    "mechanism": "iclgd --config-dir conf finetune=NAME",
    "task": "iclgd --config-dir conf task=NAME paths.data_dir=data",
    "model": "iclgd --config-dir conf model=NAME",
}


def new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write a skeleton.

    Returns:
        The files, relative to the folder.

    Raises:
        ValueError: there is no such kind, or the name is not a plain one.
        FileExistsError: one of the files is there already; none is written then.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {', '.join(KINDS)}")
    kind = "objective" if kind == "variant" else kind  # a variant's own file, and the objective that it names
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name!r} is not a plain name: small letters, digits and _ only, a letter first")
    group = "finetune" if kind == "objective" else kind
    if (config_folder() / group / f"{name}.yaml").is_file():
        raise ValueError(f"{group}={name} is built in: choose another name")
    sources = sorted(path for path in (_FILES / kind).rglob("*") if path.is_file())
    targets = [
        Path(str(path.relative_to(_FILES / kind)).replace("NAME", name).removesuffix(".txt")) for path in sources
    ]
    existing = [str(target) for target in targets if (folder / target).exists()]
    if existing:
        raise FileExistsError(f"{', '.join(existing)}: there already; choose another name, or remove it")
    for source, target in zip(sources, targets, strict=True):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(source.read_text("utf-8").replace("NAME", name), encoding="utf-8")
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
