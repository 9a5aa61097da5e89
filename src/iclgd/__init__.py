"""iclgd: how alike are in-context learning and gradient-descent finetuning inside a language model?"""

__version__ = "0.1.0"
