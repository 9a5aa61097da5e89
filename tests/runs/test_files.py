"""Files of a run folder are read if they have the types of their schema; any other costs one line."""

import pytest

from iclgd.config import ConfigError
from iclgd.runs import files
from iclgd.runs.files import DamagedRun, read, recorded_config

CONFIG = "model: {name: a}\ntask: {name: b, shots: 4}\nfinetune: {name: gd, lr: 1.0}\nseed: 0\n"
DEEP = "[" * 100_000


def test_content_is_returned_as_written(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("lr: 1.0", "extra: '${x}', lr: 1"))
    config = read(tmp_path / "config.yaml")
    assert config["finetune"] == {"name": "gd", "extra": "${x}", "lr": 1} and list(config["finetune"])[1] == "extra"
    assert recorded_config(tmp_path)["finetune"]["extra"] == "\\${x}"  # text, not an interpolation
    (tmp_path / "config.yaml").write_text(f"{CONFIG}runtime: {{padding: right, cache: auto}}\n")
    assert recorded_config(tmp_path)["runtime"] == {"cache": "auto"}, "a key of earlier versions"
    with pytest.raises(ConfigError, match=r"no run's config\.yaml can be read there \(config\.yaml is missing\)"):
        recorded_config(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("status.json", "", "status.json cannot be read"),
        ("status.json", "[]", "status.json: Input should be"),
        ("status.json", '{"state": "perhaps"}', "status.json.state: Input should be 'running'"),
        ("status.json", '{"state": "done", "files": {"a": {}}}', "status.json.files.a.bytes: Field required"),
        ("status.json", DEEP, "status.json cannot be read"),
        ("scores.json", '{"a": {"me', "scores.json cannot be read"),
        ("config.yaml", "a: [1", "config.yaml cannot be read"),
        ("config.yaml", "a: !!python/object/apply:os._exit [3]", "config.yaml cannot be read"),
        ("scores.parquet", "PAR1 PAR1", "scores.parquet cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_by_name(tmp_path, name, content, reason):
    (tmp_path / name).write_text(content)
    with pytest.raises(DamagedRun) as refused:
        read(tmp_path / name)
    message = str(refused.value)
    assert message.startswith(reason) and "\n" not in message and len(message) < 400


def test_missing_large_and_odd_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "scores.json").mkdir()
    with pytest.raises(DamagedRun, match=r"scores\.json cannot be read"):
        read(tmp_path / "scores.json")
    with pytest.raises(DamagedRun, match=r"status\.json is missing"):
        read(tmp_path / "status.json")
    monkeypatch.setattr(files, "_MOST_BYTES", 10)
    (tmp_path / "status.json").write_text('{"state": "done"}')
    with pytest.raises(DamagedRun, match="more than 10 bytes"):
        read(tmp_path / "status.json")
