"""Tiny models of every family of transformers, compared with the naive implementation (`make families`)."""
