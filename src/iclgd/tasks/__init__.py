"""From rows to prompts: what is drawn, how it is worded, and which tokens it becomes."""
