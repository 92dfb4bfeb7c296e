"""Baselines: OOD scores of the classifier alone, the competitors that DiffGuard has to beat.

One class a baseline, in a file a family: :mod:`.logits`, :mod:`.activations`, :mod:`.distances`, :mod:`.odin`.
:mod:`.names` registers the classes; :class:`.collection.Baselines` computes any number of them.
"""
