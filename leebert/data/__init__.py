"""The data of a task: what it is, its rows, folds, tokens and batches."""
