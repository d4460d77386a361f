"""The paper's tables and figures, run again: what is missing is trained by sweeps, the rest read back, all of it rendered."""
