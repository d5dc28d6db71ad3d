"""Measurements of the project against plain PyTorch; they need a clone, and most of them a GPU."""
