"""What environment.json says of the machine."""

import json
import os

import pytest

from iclgd.runs import environment


def test_the_environment_holds_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789abcdef")
    found = environment.environment("cpu", "float32", 2)
    assert found["packages"]["torch"] and found["packages"]["hydra-core"] and found["device"]["name"] == "cpu"
    assert found["threads"] == 2
    text = json.dumps(found)
    assert "0123456789abcdef" not in text and os.path.expanduser("~") not in text


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: One @ 2GHz\n\nprocessor\t: 1\nmodel name\t: Other\n", "One @ 2GHz"),
        (2 * "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n", "aarch64, CPU implementer 0x41, CPU part 0xd0c"),
        ("model name\t: \nCPU part\t: 0xd0c\nCPU part\t: 0xd4f\n", "aarch64, CPU part 0xd0c"),
        ("", "aarch64"),
    ],
)
def test_a_processor_is_told_from_another_on_arm_too(monkeypatch, content, name):
    monkeypatch.setattr(environment.Path, "read_text", lambda *_, **__: content)
    monkeypatch.setattr(environment.platform, "processor", lambda: "aarch64")
    assert environment.processor.__wrapped__().rpartition(", ")[0] == name
