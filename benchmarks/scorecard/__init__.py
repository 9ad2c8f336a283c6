"""The scorecard of `personae audit`: fitted on some worlds, judged on others."""
