"""Registry of the baselines. Does not import torch: tables and pages list the names."""

BASELINES = {
    "msp": "logits.MSP",
    "max_logit": "logits.MaxLogit",
    "energy": "logits.Energy",
    "entropy": "logits.Entropy",
    "gen": "logits.GEN",
    "ensemble": "logits.DeepEnsemble",
    "odin": "odin.ODIN",
    "react": "activations.ReAct",
    "ash": "activations.ASH",
    "scale": "activations.SCALE",
    "knn": "distances.KNN",
    "vim": "distances.ViM",
    "mahalanobis": "distances.Mahalanobis",
    "rmds": "distances.RMDS",
}
"""Name -> the module of this folder and the class."""

DEFAULT_BASELINES = ["msp", "max_logit", "energy"]
