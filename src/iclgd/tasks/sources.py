"""A task's rows from bundled files, a local copy or the hub; a wrong line is named."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iclgd.common import hub, paths
from iclgd.config import ConfigError, MissingInput, TaskConfig
from iclgd.config.enumerations import TaskSource

log = logging.getLogger(__name__)

_MOST_ROWS = 5_000_000  # of a table, in which a few bytes can stand for any number of rows
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?", re.ASCII)
LOCAL_COPY = (
    "a local copy works too: paths.data_dir=FOLDER or ICLGD_DATA_DIR, where FOLDER holds {0}.jsonl, .csv or .parquet"
)


class DataError(ConfigError):
    """Rows that cannot be used; the message names the file and the line."""


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


def read_split(task: TaskConfig, split: str, data_dir: str | None) -> Split:
    """All rows of a split.

    A bundled task is read from the package. A hub task is read from `data_dir`/NAME/SPLIT.jsonl, .csv or .parquet
    if `data_dir` has a folder of the task's name, else from the hub.

    Raises:
        ConfigError: a name that is no plain name, a folder or hub data set that is not there.
        DataError: no such file, a line that is not a JSON object, or no rows.
    """
    _plain_name("task.name", task.name)
    _plain_name("split", split)
    if task.source is TaskSource.bundled:
        found = _from_folder(paths.bundled_data_folder() / task.name, split)
    else:
        copy = _local_copy(task, data_dir)
        found = _from_hub(task, split) if copy is None else _from_folder(copy, split)
    if not found.rows:
        raise DataError(f"{found.origin} is empty: task {task.name} needs rows in its {split} split")
    return found


def is_local(task: TaskConfig, data_dir: str | None) -> bool:
    """Whether a task's rows are read from files.

    Raises:
        ConfigError: `data_dir` is no folder.
    """
    _plain_name("task.name", task.name)
    return task.source is TaskSource.bundled or (
        task.source is TaskSource.hub and _local_copy(task, data_dir) is not None
    )


def _plain_name(key: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{key}={name!r} is no plain name: letters, digits, '_', '-' and '.' only, no folders")


def _local_copy(task: TaskConfig, data_dir: str | None) -> Path | None:
    if data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise MissingInput(f"paths.data_dir={data_dir} is no folder: name one that holds {task.name}/SPLIT.jsonl")
    return folder / task.name if (folder / task.name).is_dir() else None


def _from_folder(folder: Path, split: str) -> Split:
    for suffix, read in _READERS.items():
        file = folder / f"{split}{suffix}"
        if file.is_file():
            return read(file)
    there = sorted(path.name for path in folder.glob("*") if path.suffix in _READERS)
    raise MissingData(f"no {split}.jsonl, .csv or .parquet in {folder} (there: {', '.join(there) or 'no data file'})")


def read_jsonl(file: Path) -> Split:
    r"""Rows of a file with one JSON object a line, in UTF-8.

    Lines end at "\n" alone, so that other line separators may stand inside strings; a byte order mark, "\r" and blank
    lines are passed over, and control characters inside strings are kept.

    Raises:
        DataError: naming file and line.
    """
    rows, numbers = [], []
    try:
        content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), strict=False)
        except UnicodeDecodeError as error:
            raise DataError(f"{file}, line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {number}: not JSON ({error}); every line must be one JSON object") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a JSON {type(row).__name__}, not an object with columns")
        rows.append(row)
        numbers.append(number)
    return Split(str(file), rows, numbers)


def read_csv(file: Path) -> Split:
    """Rows of a CSV file in UTF-8 whose first line names the columns; every value is text.

    Raises:
        DataError: naming file and line.
    """
    rows, numbers = [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            names = list(reader.fieldnames or ())
            if len(set(names)) < len(names):
                raise DataError(f"{file} has two columns of one name in {names}: every column needs its own")
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{file}, line {reader.line_num}: not {len(names)} values, as the first line names")
                rows.append(row)
                numbers.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8 ({error})") from error
    return Split(str(file), rows, numbers)


def read_parquet(file: Path) -> Split:
    """Rows of a parquet file. A column that Python cannot hold, such as times beyond the year 9999, is left out.

    Raises:
        DataError: the file cannot be read as parquet, or has too many rows or two columns of one name.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:  # unlike `read_table`, which reads columns into folder names
            if opened.metadata.num_rows > _MOST_ROWS:
                raise DataError(f"{file} has {opened.metadata.num_rows:,} rows; at most {_MOST_ROWS:,} are read")
            table = opened.read()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be read as parquet ({error})") from error
    repeated = {name for name in table.column_names if table.column_names.count(name) > 1}
    if repeated:
        raise DataError(f"{file} has several columns named {sorted(repeated)[0]!r}: every column needs its own name")
    columns = {}
    for name in table.column_names:
        try:
            columns[name] = table.column(name).to_pylist()
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            log.warning("%s: column %r cannot be read and is left out (%s)", file, name, error)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Split(str(file), rows, range(len(rows)), unit="row")


_READERS = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}


def _from_hub(task: TaskConfig, split: str) -> Split:
    if task.hub is None:
        raise ConfigError(
            f"task {task.name} names no data set: give task.hub, or " + LOCAL_COPY.format(task.name + "/SPLIT")
        )
    if not _HUB_ID.fullmatch(task.hub):
        raise ConfigError(f"task.hub={task.hub!r} is no hub id: give OWNER/NAME")
    hub.settle()
    import datasets
    from datasets.exceptions import DatasetsError

    origin = f"{task.hub}{f' ({task.subset})' if task.subset else ''}, split {split}"
    try:
        found = datasets.load_dataset(task.hub, task.subset, split=split, revision=task.revision)
        rows = found.to_list()
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, OverflowError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MissingData(
            f"{origin} cannot be had from the hub ({reason}); " + LOCAL_COPY.format(f"{task.name}/{split}")
        ) from error
    return Split(origin, rows, range(len(rows)), unit="row")
