"""Optimisers of ω: their interface, fixed weights, and derivatives of steps of θ."""
