"""Where parameters meet features, for gradient projection."""
