"""One configuration under several seeds."""
