"""Baselines: OOD scores of the classifier alone, the competitors that DiffGuard has to beat.

Each baseline is a class, each family of them a file: :mod:`.logits`, :mod:`.activations`,
:mod:`.distances`, :mod:`.odin`. :mod:`.names` registers the classes, and
:class:`.collection.Baselines` computes any number of them.
"""
