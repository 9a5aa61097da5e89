"""A room of the package imports only rooms below it, wherever in a file the import stands."""

import ast
from collections.abc import Iterator
from pathlib import Path

import iclgd

SOURCE = Path(iclgd.__file__).parent

ORDER = (  # from the ground up; rooms of one line do not know each other
    {"common"},
    {"config"},
    {"tasks"},
    {"models"},
    {"mechanisms"},
    {"statistics"},
    {"metrics"},
    {"runs"},
    {"results"},
    {"report"},
    {"tracking"},
    {"evidence"},
    {"experiment", "verify"},
    {"cli"},
    {"api", "__main__"},
    {"__init__"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def imports(source: Path) -> Iterator[tuple[str, str]]:
    """Pairs (importing room, imported module) between rooms, as dotted names below the package."""
    for path in sorted(source.rglob("*.py")):
        here = path.relative_to(source).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative imports hide where they lead"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                package, *below = name.split(".")
                if package == "iclgd" and below and below[0] in RANK and below[0] != here:
                    yield here, ".".join(part for part in below if not part[0].isupper())


def upward(source: Path) -> set[tuple[str, str]]:
    """Imports that do not lead downward."""
    return {(here, there) for here, there in imports(source) if RANK[there.split(".")[0]] >= RANK[here]}


def test_every_room_has_its_place():
    rooms = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms == set(RANK)


def test_imports_lead_downward():
    assert upward(SOURCE) == set()
