"""From log-likelihoods to posteriors and forecasts; needs no model."""
