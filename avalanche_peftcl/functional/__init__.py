"""Pure functions of tensors; they need torch and nothing else."""
