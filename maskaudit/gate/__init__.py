"""The gate: models and claims listed in a configuration file, one summary, one exit status for a build."""
