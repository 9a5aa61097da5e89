"""Rows: what is read, and what is refused with file and line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iclgd.config import ConfigError, TaskConfig
from iclgd.tasks.examples import DataError
from iclgd.tasks.sources import read_file, read_splits
from task_cases import rows_of, write_jsonl, write_task

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def task(**values) -> TaskConfig:
    return TaskConfig(**{"name": "things", "templates": ["{{ text }}"], "labels": ["a", "b"], **values})


def test_lines_end_at_newline_alone_and_marks_are_passed_over(tmp_path: Path):
    file = tmp_path / "odd.jsonl"
    strange = "bom, \u2028 line, \u0085 next, \u202e bidi, \x00 nul, \ud83d\ude00 smile"
    first = json.dumps({"text": strange}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    first = first.replace("\ud83d\ude00".encode("utf-8", "surrogatepass"), "😀".encode())
    file.write_bytes(b"\xef\xbb\xbf" + first + b'\r\n\n  \r\n{"text": "raw \x01\t\r control"}')
    read = read_file(file)
    assert [row["text"] for _, row in read.rows] == [strange.replace("\ud83d\ude00", "😀"), "raw \x01\t\r control"]
    assert [where for where, _ in read.rows] == [f"{file}, line 1", f"{file}, line 4"]


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_by_line(tmp_path: Path, content: bytes):
    file = tmp_path / "fuzz.jsonl"
    file.write_bytes(content)
    try:
        read = read_file(file)
    except DataError as error:
        assert "fuzz.jsonl cannot be read: line " in str(error)
    else:
        assert all(isinstance(row, dict) for _, row in read.rows)


@FUZZ
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=3), max_size=5))
def test_json_lines_survive_any_text_and_line_end(tmp_path: Path, rows: list[dict]):
    file = tmp_path / "fuzz.jsonl"
    lines = [json.dumps(row, ensure_ascii=bool(index % 2)) for index, row in enumerate(rows)]
    file.write_bytes("".join(line + ("\r\n", "\n")[index % 2] for index, line in enumerate(lines)).encode())
    assert [row for _, row in read_file(file).rows] == rows


def parquet(**columns: Any) -> bytes:
    names = [name.rstrip("_") for name in columns]
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(list(columns.values()), names=names), stream)
    return stream.getvalue()


def test_parquet_and_jsonl_give_the_same_rows(tmp_path: Path):
    rows = [{"text": "a", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "label": 1}] * 3
    folder = tmp_path / "size=big"  # a folder's name is not a column
    written = write_jsonl(folder / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    read = read_file(folder / "rows.parquet").rows
    assert [row for _, row in read] == rows == [row for _, row in read_file(written).rows]
    assert read[2][0].endswith("rows.parquet, row 2")


def test_csv_rows_are_text_by_column(tmp_path: Path):
    file = tmp_path / "things" / "train.csv"
    file.parent.mkdir()
    file.write_bytes('\ufefftext,label\r\n"a, ""b""\nc",1\r\n\r\nNA,\r\n'.encode())
    train, evaluation = read_splits(task(eval_split="train"), str(tmp_path))
    assert train is evaluation
    assert [row for _, row in train.rows] == [{"text": 'a, "b"\nc', "label": "1"}, {"text": "NA", "label": ""}]
    assert train.rows[1][0].endswith("train.csv, line 5")


WHOLE = parquet(text=["one", "two"], label=[0, 1])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"a": 1}\n\n{"a"', r"x\.jsonl cannot be read: line 3: not a JSON object"),
        ("x.jsonl", b"\n[1, 2]", r"x\.jsonl cannot be read: line 2: a list, not an object"),
        ("x.jsonl", b'"text"', "line 1: a str, not an object"),
        ("x.jsonl", b'{"a": "\xff\xfe"}', "line 1: not a JSON object in UTF-8"),
        ("x.jsonl", b"[" * 100_000, "line 1: not a JSON object"),
        ("x.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "line 1: not a JSON object"),
        ("x.json", b"{}", "a JSON dict, not a list of objects"),
        ("x.json", b"[{]", r"x\.json cannot be read: "),
        ("x.json", b'[{}, ["x"]]', "row 1: a list, not an object"),
        ("x.parquet", b"PAR1 not really PAR1", r"x\.parquet cannot be read"),
        ("x.parquet", b"", "cannot be read"),
        ("x.parquet", WHOLE[: len(WHOLE) // 2], "cannot be read"),
        ("x.parquet", parquet(text=["a"], text_=["b"]), "several columns named 'text'"),
        ("x.parquet", parquet(when=pyarrow.array([2**60], pyarrow.timestamp("ms"))), "cannot be read"),
        ("x.csv", b"a,b\n1,2\n1\n", "line 3: not 2 values"),
        ("x.csv", b"a,b\n1,2,3\n", "line 2: not 2 values"),
        ("x.csv", b"a,a\n1,2\n", "several columns named 'a'"),
        ("x.csv", b"a,b\n\xff,2\n", "save the file as UTF-8"),
        ("x.csv", b'a,b\n"1,2\n', "cannot be read"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_broken_file_is_refused_by_name_and_line(tmp_path: Path, name: str, content: bytes, said: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_splits(task(file=str(tmp_path / name)), None)


def test_missing_and_empty_splits_are_refused(tmp_path: Path):
    write_task(tmp_path, rows_of(2), validation=[])
    for data_dir, values, said in (
        (str(tmp_path), {}, r"validation\.jsonl is empty: task things needs rows"),
        (str(tmp_path), {"eval_split": "test"}, r"no test\.jsonl, \.csv or .*\(there: train\.jsonl, validation"),
        (None, {}, r"task things names no data set: give task\.hub"),
        (str(tmp_path / "nowhere"), {}, r"paths\.data_dir=.*nowhere is not a folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_splits(task(**values), data_dir)


def test_the_hub_is_asked_plainly_and_its_columns_come_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked = []

    def load_dataset(*args, **keywords):
        asked.append((args, keywords))
        return datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = task(hub="owner/set", subset="one", revision="abc", eval_split="train")
    read, _ = read_splits(hub, str(tmp_path))  # a data folder without this task's own folder
    assert asked == [(("owner/set", "one"), {"split": "train", "revision": "abc"})]
    origin = "owner/set (one), split train"
    assert read.rows == [
        (f"{origin}, row 0", {"text": "a", "label": 1}),
        (f"{origin}, row 1", {"text": "b", "label": 0}),
    ]


@pytest.mark.parametrize("error", [ConnectionError("no answer"), datasets.exceptions.DatasetNotFoundError("gone")])
def test_no_hub_says_how_to_name_a_local_copy(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def load_dataset(*args, **keywords):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as refused:
        read_splits(task(hub="owner/set"), None)
    for said in ("owner/set, split train", str(error), "paths.data_dir=FOLDER", "things/train.jsonl"):
        assert said in str(refused.value)
