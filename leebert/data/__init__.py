"""Tasks and their data: declarations, readers, folds, tokens and batches."""
