"""How θ and ω are optimised together: the contract of an optimiser of ω, fixed weights, and derivatives of steps of θ."""
