"""TODO."""

IND = "ind"
"""The group of the in-distribution set."""
CALIBRATION = "calibration"
"""Data set, and group, of in-distribution validation images that combinations and thresholds are calibrated on."""
