"""The statistics core against simulations with a known answer."""
