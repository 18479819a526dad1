"""A trained network in one file, to be used without Avalanche."""
