"""A task's rows: from files that ship with the package, from a local copy, or from the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iclgd.common import hub, paths, seeding
from iclgd.config import ConfigError, MissingInput, TaskConfig
from iclgd.config.enumerations import TaskSource
from iclgd.tasks.examples import DataError

LOCAL_COPY = "a local copy works too: paths.data_dir=FOLDER, where FOLDER holds {0}.jsonl, .csv or .parquet"


class MissingData(DataError, MissingInput):
    """Rows that are not there; the message says where they were looked for."""


@dataclass(frozen=True)
class Split:
    """The rows of one split."""

    origin: str  # the file, or the hub id and split
    rows: Sequence[Mapping[str, Any]]  # column values by name
    numbers: Sequence[int]  # where in `origin` each row stands
    unit: str = "line"  # what `numbers` count: lines (from 1) of a text file, rows (from 0) of a table

    def where(self, index: int) -> str:
        """Where a row stands, for messages."""
        return f"{self.origin}, {self.unit} {self.numbers[index]}"

    def only(self, indices: Sequence[int]) -> Split:
        """Some of the rows."""
        return replace(self, rows=[self.rows[i] for i in indices], numbers=[self.numbers[i] for i in indices])


def read_splits(task: TaskConfig, data_dir: str | None) -> tuple[Split, Split]:
    """The train and the evaluation split, which are one object if they have one name.

    A single file, `task.file` or `data_dir`/NAME.json, has no splits: its rows are shuffled, always in the same order,
    and the first half is the train split.

    Raises:
        ConfigError: a folder, file or hub data set that does not exist.
        DataError: a missing or unreadable file, a bad line, or no rows.
    """
    file = _single_file(task, data_dir)
    if file is None:
        train = read_split(task, task.train_split, data_dir)
        return train, train if task.eval_split == task.train_split else read_split(task, task.eval_split, data_dir)
    whole = _READERS[file.suffix](file)
    order = seeding.shuffled(len(whole.rows), 0)
    if len(order) < 2:
        raise DataError(f"{file} has {len(order)} rows: two or more are needed, for demonstrations and for queries")
    return whole.only(order[: len(order) // 2]), whole.only(order[len(order) // 2 :])


def _single_file(task: TaskConfig, data_dir: str | None) -> Path | None:
    if task.file:
        file = Path(task.file).expanduser()
        if not file.is_file() or file.suffix not in _READERS:
            raise MissingInput(f"task.file={task.file} is not a file that ends in {', '.join(_READERS)}")
        return file
    if data_dir is None or task.source is TaskSource.bundled:
        return None
    folder = Path(data_dir).expanduser()
    files = (folder / f"{task.name}{suffix}" for suffix in _READERS)
    return None if (folder / task.name).is_dir() else next((file for file in files if file.is_file()), None)


def read_split(task: TaskConfig, split: str, data_dir: str | None) -> Split:
    """All rows of a split: of a bundled task from the package, else from `data_dir`/NAME or, without it, the hub.

    Raises:
        ConfigError: a folder or hub data set that does not exist.
        DataError: a missing or unreadable file, a bad line, or no rows.
    """
    folder = _folder(task, data_dir)
    rows = _from_hub(task, split) if folder is None else _from_folder(folder, split)
    if not rows.rows:
        raise DataError(f"{rows.origin} is empty: task {task.name} needs rows in its {split} split")
    return rows


def _folder(task: TaskConfig, data_dir: str | None) -> Path | None:
    if task.source is TaskSource.bundled:
        return paths.bundled_data_folder() / task.name
    if data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise MissingInput(f"paths.data_dir={data_dir} is not a folder: name one that holds {task.name}/SPLIT.jsonl")
    return folder / task.name if (folder / task.name).is_dir() else None


def _from_folder(folder: Path, split: str) -> Split:
    for suffix, read in _READERS.items():
        file = folder / f"{split}{suffix}"
        if file.is_file():
            return read(file)
    files = sorted(path.name for path in folder.glob("*") if path.suffix in _READERS)
    raise MissingData(f"no {split}.jsonl, .csv or .parquet in {folder} (there: {', '.join(files) or 'no data file'})")


def read_jsonl(file: Path) -> Split:
    r"""Rows of a file with one JSON object a line, in UTF-8.

    Lines end at "\n" alone, so that other line separators may stand inside strings. A byte order mark, "\r" and blank
    lines are skipped, and control characters inside strings are kept.
    """
    rows, numbers, decoder = [], [], json.JSONDecoder(strict=False)
    for number, line in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{file}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON ({error}); every line must be one JSON object") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a JSON {type(row).__name__}, not an object with columns")
        rows.append(row)
        numbers.append(number)
    return Split(str(file), rows, numbers)


def read_json(file: Path) -> Split:
    """Rows of a file with one JSON list of objects, in UTF-8."""
    try:
        rows = json.loads(file.read_text("utf-8-sig"), strict=False)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON in UTF-8 ({error})") from error
    if not isinstance(rows, list):
        raise DataError(f"{file}: a JSON {type(rows).__name__}, not a list of objects")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{file}, row {index}: a JSON {type(row).__name__}, not an object with columns")
    return Split(str(file), rows, range(len(rows)), unit="row")


def read_csv(file: Path) -> Split:
    """Rows of a CSV file in UTF-8 whose first line names the columns; every value is text."""
    rows, numbers = [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            names = list(reader.fieldnames or ())
            _refuse_repeated(names, file)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{file}, line {reader.line_num}: not {len(names)} values, as the first line names")
                rows.append(row)
                numbers.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8 ({error})") from error
    return Split(str(file), rows, numbers)


def read_parquet(file: Path) -> Split:
    """Rows of a parquet file."""
    import pyarrow.parquet  # imported late: it takes a tenth of a second

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:  # unlike `read_table`, which reads columns into folder names
            table = opened.read()
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:
        raise DataError(f"{file} cannot be read as parquet ({error})") from error
    _refuse_repeated(table.column_names, file)
    return Split(str(file), rows, range(len(rows)), unit="row")


def _refuse_repeated(names: Sequence[str], file: Path) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{file} has several columns named {repeated[0]!r}: every column needs its own name")


_READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}


def _from_hub(task: TaskConfig, split: str) -> Split:
    if not task.hub:
        raise ConfigError(
            f"task {task.name} names no data set: give task.hub or task.file, or "
            + LOCAL_COPY.format(task.name + "/SPLIT")
        )
    hub.settle()
    import datasets  # imported late: it takes a second
    from datasets.exceptions import DatasetsError

    origin = f"{task.hub}{f' ({task.subset})' if task.subset else ''}, split {split}"
    try:
        rows = datasets.load_dataset(task.hub, task.subset, split=split, revision=task.revision).to_list()
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, OverflowError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingData(
            f"{origin} cannot be had from the hub ({reason}); " + LOCAL_COPY.format(f"{task.name}/{split}")
        ) from error
    return Split(origin, rows, range(len(rows)), unit="row")
