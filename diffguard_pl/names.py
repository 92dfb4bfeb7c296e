"""Reserved names of datasets and groups. This module imports nothing, so that any other may import it."""

IND = "ind"
"""Group of the in-distribution dataset."""

CALIBRATION = "calibration"
"""Dataset and group of the in-distribution validation images that combinations and thresholds are calibrated on."""
