"""Registry of the path scores. Does not import torch: tables and pages list the names."""

PATH_SCORES = {
    "diffpath": "statistics.DiffPath",
    "diffpath_1d": "statistics.DiffPath1D",
    "msma": "statistics.MSMA",
    "label_pull": "label_pull.LabelPull",
    "ddpm_ood": "reconstructions.DDPMOOD",
    "diffnb": "reconstructions.DiffNB",
    "projection_regret": "reconstructions.ProjectionRegret",
    "lmd": "reconstructions.LMD",
    "gepc": "equivariance.GEPC",
    "scoped": "derivatives.SCOPED",
    "eigenscore": "derivatives.EigenScore",
    "nll": "derivatives.NLL",
    "cfs": "network_features.CFS",
}
"""Name -> the module of this folder and the class."""
