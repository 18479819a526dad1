"""What ``gpu_check.py`` consists of."""
