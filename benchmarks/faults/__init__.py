"""Twenty random deaths each of a worker, the driver and the server; what is left must be exact."""
