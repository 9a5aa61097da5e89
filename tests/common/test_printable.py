"""Keys that a library's error quotes are in no log, status or message of a run."""

import pytest

from configs import config
from iclgd.common.printable import without_secrets
from iclgd.runs.execute import Ending, execute

TOKEN, USER = "hf_" + "a1B2" * 8, "somebody:password"
REVISION = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"


def test_keys_are_hidden_and_revisions_are_not(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an odd token")
    text = f"https://{USER}@mirror.example/api: {TOKEN}, an odd token, wandb_v1_abcDEF123, revision {REVISION}"
    assert without_secrets(text) == f"https://***@mirror.example/api: ***, ***, ***, revision {REVISION}"


@pytest.mark.parametrize("text", ["user@host", "https://example.org/a@b", "a // b @ c", "PAD_TOKEN = 'marker'", ""])
def test_other_texts_stay(text):
    assert without_secrets(text) == text


def test_a_failed_run_shows_no_key_anywhere(tmp_path):
    def experiment(*_):
        raise OSError(f"no answer from https://{USER}@mirror.example with {TOKEN}")

    outcome = execute(config("tracking=none"), tmp_path / "run", experiment)
    assert outcome.ending is Ending.failed and "mirror.example" in outcome.message
    log = (tmp_path / "run" / "run.log").read_text()
    written = log + outcome.message + (tmp_path / "run" / "status.json").read_text()
    assert "Traceback" in log
    assert TOKEN not in written and USER not in written and "https://***@mirror.example with ***" in written
