"""Reproduce the paper's tables and figures: train missing runs in sweeps, read finished ones, render the result."""
