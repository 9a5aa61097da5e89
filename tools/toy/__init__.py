"""A small model whose in-context learning is beyond doubt, as `model=toy task=toy`; `python -m toy` makes it."""
