"""Parts for LeeBERT Sweep, one file each."""
