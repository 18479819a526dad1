"""From two sets of labelled images to a stream of experiences."""
