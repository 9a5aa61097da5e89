"""Everything that the scores of one run need, recorded: only what some score names."""
