"""Keys that a library's error quotes are in no log, status or message of a run."""

import logging

import pytest

from configs import config
from iclgd.runs.execute import Ending, execute
from iclgd.runs.secrets import Formatter, without_secrets

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
    written = outcome.message + "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert TOKEN not in written and USER not in written and "https://***@mirror.example with ***" in written


def test_tracebacks_in_the_log_are_covered():
    try:
        raise ValueError(TOKEN)
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", None, (type(error), error, None))
    assert TOKEN not in Formatter("%(message)s").format(record)
