"""Reserved names of datasets, scores and columns. Imports nothing: any module may import it."""

IND = "ind"
"""Group of the in-distribution dataset."""
CALIBRATION = "calibration"
"""Dataset and group of the in-distribution images on which combinations and thresholds are set."""
CSID = "csid"
"""Group of covariate-shifted in-distribution datasets, which full-spectrum detection accepts."""
FULL_SPECTRUM = "fsood_"
"""Prefix of a group's name in full-spectrum results, such as ``fsood_near``."""
MEAN, AVERAGE = "mean", "average"
"""Rows of the result table: the mean over a group of datasets, and that over all datasets."""
ALL = "all"
"""Group of the average row."""
FUSION, CASCADE = "fusion", "cascade"
"""Scores that are combined of others."""
RESERVED = (
    "dataset",
    "group",
    "index",
    "path",
    "label",
    "prediction",
    "reconstructed_as",
    "stop_index",
    "nfe",
    "seconds",
    "fingerprint",
    "error",
    "input_logits",
    "input_features",
    "reconstruction",
    FUSION,
    CASCADE,
)
"""Columns of a run's scores/, which no score of a user may be called."""
