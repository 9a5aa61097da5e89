"""A task's rows: from files that ship with the package, from a local copy, or from the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.common import hub, paths, seeding
from iclgd.config import ConfigError, MissingInput, TaskConfig
from iclgd.config.enumerations import TaskSource
from iclgd.tasks.examples import DataError

LOCAL_COPY = "a local copy works too: paths.data_dir=FOLDER, where FOLDER holds {0}.jsonl, .csv or .parquet"
Row = Mapping[str, Any]  # values by column


class MissingData(DataError, MissingInput):
    """Rows that are not there; the message says where they were looked for."""


@dataclass(frozen=True)
class Split:
    """The rows of one split."""

    origin: str  # the file, or the hub id and split
    rows: Sequence[tuple[str, Row]]  # each with where it stands, for messages


def read_splits(task: TaskConfig, data_dir: str | None) -> tuple[Split, Split]:
    """The train and the evaluation split, which are one object if they have one name.

    A single file, `task.file` or `data_dir`/NAME.json, has no splits: its rows are shuffled, always in the same order,
    and the first half is the train split.

    Raises:
        ConfigError: a folder, file or hub data set that does not exist.
        DataError: a missing or unreadable file, a bad line, or no rows.
    """
    source = _local_source(task, data_dir)
    if source is None or source.is_dir():
        train = _split(task, task.train_split, source)
        return train, train if task.eval_split == task.train_split else _split(task, task.eval_split, source)
    rows = read_file(source).rows
    if len(rows) < 2:
        raise DataError(f"{source} has {len(rows)} rows: two or more are needed, for demonstrations and for queries")
    shuffled = [rows[index] for index in seeding.shuffled(len(rows), 0)]
    half = len(rows) // 2
    return Split(str(source), shuffled[:half]), Split(str(source), shuffled[half:])


def _local_source(task: TaskConfig, data_dir: str | None) -> Path | None:
    """The task's own file, or the folder of its splits; None if its rows are on the hub."""
    if task.file:
        file = Path(task.file).expanduser()
        if not file.is_file() or file.suffix not in _READERS:
            raise MissingInput(f"task.file={task.file} is not a file that ends in {', '.join(_READERS)}")
        return file
    if task.source is TaskSource.bundled:
        return paths.bundled_data_folder() / task.name
    if data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise MissingInput(f"paths.data_dir={data_dir} is not a folder: name one that holds {task.name}/SPLIT.jsonl")
    return folder / task.name if (folder / task.name).is_dir() else _data_file(folder, task.name)


def _data_file(folder: Path, name: str) -> Path | None:
    files = (folder / f"{name}{suffix}" for suffix in _READERS)
    return next((file for file in files if file.is_file()), None)


def _split(task: TaskConfig, split: str, folder: Path | None) -> Split:
    if folder is None:
        rows = _from_hub(task, split)
    elif file := _data_file(folder, split):
        rows = read_file(file)
    else:
        there = ", ".join(sorted(path.name for path in folder.glob("*") if path.suffix in _READERS))
        raise MissingData(f"no {split}.jsonl, .csv or .parquet in {folder} (there: {there or 'no data file'})")
    if not rows.rows:
        raise DataError(f"{rows.origin} is empty: task {task.name} needs rows in its {split} split")
    return rows


def read_file(file: Path) -> Split:
    """The rows of a .jsonl, .json, .csv or .parquet file. Text is in UTF-8, and values are as they are written.

    Raises:
        DataError: the file cannot be read or has a row without columns, by file and, as far as it is known, line.
    """
    rows = []
    try:
        for where, row in _READERS[file.suffix](file):
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a {type(row).__name__}, not an object with columns")
            rows.append((f"{file}, {where}", row))
    except Exception as error:  # what json, csv and pyarrow raise has no common base
        remedy = "; save the file as UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{file} cannot be read: {error}{remedy}") from error
    return Split(str(file), rows)


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    r"""One JSON object a line. Lines end at "\n" alone, so that other line separators may stand inside strings."""
    decoder = json.JSONDecoder(strict=False)  # which keeps control characters inside strings
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            try:
                row = decoder.decode(line.decode())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: not a JSON object in UTF-8 ({error})") from error
            yield f"line {number}", row


def _json_list(file: Path) -> Iterator[tuple[str, Any]]:
    rows = json.loads(file.read_text("utf-8-sig"), strict=False)
    if not isinstance(rows, list):
        raise ValueError(f"a JSON {type(rows).__name__}, not a list of objects")
    return ((f"row {index}", row) for index, row in enumerate(rows))


def _csv(file: Path) -> Iterator[tuple[str, Any]]:
    """The first line names the columns; every value is text."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        names = list(reader.fieldnames or ())
        _refuse_repeated(names)
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num}: not {len(names)} values, as the first line names")
            yield f"line {reader.line_num}", row


def _parquet(file: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet  # imported late: it takes a tenth of a second

    with pyarrow.parquet.ParquetFile(file) as stream:  # unlike `read_table`, which reads columns into folder names
        table = stream.read()
    _refuse_repeated(table.column_names)
    return ((f"row {index}", row) for index, row in enumerate(table.to_pylist()))


def _refuse_repeated(names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"it has several columns named {repeated[0]!r}: every column needs its own name")


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _from_hub(task: TaskConfig, split: str) -> Split:
    local = LOCAL_COPY.format(f"{task.name}/{split}")
    if not task.hub:
        raise ConfigError(f"task {task.name} names no data set: give task.hub or task.file, or {local}")
    hub.settle()
    import datasets  # imported late: it takes a second

    origin = f"{task.hub}{f' ({task.subset})' if task.subset else ''}, split {split}"
    try:
        rows = datasets.load_dataset(task.hub, task.subset, split=split, revision=task.revision).to_list()
    except Exception as error:  # of networks, files, scripts and builders, without a common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingData(f"{origin} cannot be had from the hub ({reason}); {local}") from error
    return Split(origin, [(f"{origin}, row {index}", row) for index, row in enumerate(rows)])
