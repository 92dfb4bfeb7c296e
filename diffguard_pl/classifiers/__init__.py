"""Classifiers under protection: preprocessing, layers, and models by name."""
