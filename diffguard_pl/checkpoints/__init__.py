"""Checkpoints: found by name, downloaded, converted, read safely (`tensors` alone needs torch)."""
