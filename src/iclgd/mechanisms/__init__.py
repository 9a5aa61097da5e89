"""What may stand for ICL: finetuning by gradients, patches, shifts, vectors, prefixes, one-shot updates."""
