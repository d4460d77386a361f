"""What sweeps run on: nodes, their memory and places, and what would fail on them later."""
