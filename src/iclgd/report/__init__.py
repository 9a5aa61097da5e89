"""Finished run folders in; tables, figures and one page out. No model, no tracking, no network."""
