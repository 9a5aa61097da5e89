"""From rows to prompts: what is drawn, how it is worded, and which tokens it becomes."""

from iclgd.tasks.draw import Drawn, draw
from iclgd.tasks.encode import encode
from iclgd.tasks.prompts_json import as_json, from_json

__all__ = ["Drawn", "as_json", "draw", "encode", "from_json"]
