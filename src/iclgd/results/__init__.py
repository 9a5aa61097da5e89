"""Finished runs as one long frame, what is concluded from it, and what the papers report beside it."""
