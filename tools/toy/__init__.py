"""A small model whose in-context learning is beyond doubt: `model=toy task=toy`, made by `python -m toy`."""
