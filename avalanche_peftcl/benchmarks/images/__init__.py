"""Images in memory and in files, and lists of them."""
