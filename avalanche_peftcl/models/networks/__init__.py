"""Whole networks: a backbone, what is tuned in it, and a head."""
