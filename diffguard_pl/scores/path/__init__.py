"""Path scores: what the noise tells that the diffusion model predicts on an image's way.

DiffGuard predicts the noise of an image at every step, and so do other diffusion-based detectors:
many of their scores come from the same run, for no network evaluation more or for a few. Each is a
class, each family of them a file. Those of :mod:`.statistics` and :mod:`.label_pull` are functions
of the path that the engine keeps; those of :mod:`.reconstructions`, :mod:`.equivariance`,
:mod:`.derivatives` and :mod:`.network_features` evaluate the diffusion model on their own.
:mod:`.names` registers the classes, and :class:`.collection.PathScores` computes any number of
them.
"""
