"""Plain things that every room uses: records, seeds, paths, digests, printable text."""
