"""Models: loading them, finding their parts, recording what they do."""
