"""What turns features into logits by row, and grows with a stream."""
