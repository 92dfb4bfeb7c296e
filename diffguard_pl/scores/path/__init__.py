"""Path scores: what the noise tells that the diffusion model predicts on an image's way.

DiffGuard predicts the noise of an image at every step, and so do other diffusion-based detectors:
many of their scores come from the same run, for no network evaluation more or for a few. Each is a
class, each family of them a file: :mod:`.statistics`, :mod:`.label_pull`. :mod:`.names` registers
the classes, and :class:`.collection.PathScores` computes any number of them.
"""
