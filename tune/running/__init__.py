"""From a checked search space to finished cells: driver, trials and their cross-validation, and their replay."""
