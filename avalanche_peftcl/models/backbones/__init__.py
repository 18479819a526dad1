"""Frozen networks, their weights and their input."""
