"""Every test that the table of faults names exists, and every fault names one."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
FAULTS = (TESTS.parent / "docs" / "FAULTS.md").read_text()
ROWS = [line for line in FAULTS.splitlines() if line.startswith("| ") and not line.startswith("| Fault |")]
NAMED = re.compile(r"`((?:outside/)?test_\w+\.py)::(test_\w+)`")


def defined_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_tests_named_in_the_table_of_faults_exist():
    named = re.findall(r"`((?:outside/)?test_\w+\.py)::(test_\w+)`", FAULTS)
    known = {file: defined_in(TESTS / file) for file in {file for file, _ in named} if (TESTS / file).exists()}
    assert [f"{file}::{test}" for file, test in named if test not in known.get(file, set())] == []


def test_every_fault_names_its_test():
    assert len(ROWS) > 40
    for row in ROWS:
        _, fault, happens, tests, _ = row.split("|")
        assert fault.strip() and happens.strip()
        assert all(NAMED.fullmatch(name) for name in tests.strip().split(", ")), row
