"""`personae audit` and `personae profile` on real models of which something is known."""
