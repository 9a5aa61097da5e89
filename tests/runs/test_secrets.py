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


@pytest.mark.parametrize(
    "text",
    [
        'os.environ["WANDB_API_KEY"] = "{}"',
        'os.environ.setdefault("WANDB_API_KEY", "{}")',
        "wandb.login(key='{}')",
        'API_KEY: str = "{}"',
        "API_KEY: Final[str | None] = b'{}'",
        "api_key: {}",
        '{{"apiKey": "{}"}}',
        "export WANDB_API_KEY={}",
        'if token == "{}":',
        "password := '{}'",
    ],
)
def test_keys_are_hidden_as_code_and_settings_write_them(text):
    assert without_secrets(text.format("0a1b" * 5)) == text.format("***")


@pytest.mark.parametrize(
    "text",
    [
        *("user@host", "https://example.org/a@b", "a // b @ c", ""),
        *('PAD_TOKEN = "some_ordinary_marker"', "KEY = learning_rate_schedule", "get(key, block_12_projection)"),
        *("+KEY:\n-identifier_long_1", "KEY =\n    identifier_long_1", "num_key_value_heads: 1234567890123456"),
    ],
)
def test_other_texts_stay(text):
    assert without_secrets(text) == text


def test_a_failed_run_shows_no_key_anywhere(tmp_path):
    def experiment(*_):
        raise OSError(f"no answer from https://{USER}@mirror.example with {TOKEN}")

    outcome = execute(config("tracking=none"), tmp_path / "run", experiment)
    assert outcome.ending is Ending.failed and "mirror.example" in outcome.message
    kept = outcome.message + "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert TOKEN not in kept and USER not in kept and "https://***@mirror.example with ***" in kept


def test_tracebacks_in_the_log_are_covered():
    try:
        raise ValueError(TOKEN)
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", None, (type(error), error, None))
    assert TOKEN not in Formatter("%(message)s").format(record)
