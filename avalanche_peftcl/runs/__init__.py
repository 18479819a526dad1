"""One run, from a configuration to its record; none of it is imported before it is asked for."""
