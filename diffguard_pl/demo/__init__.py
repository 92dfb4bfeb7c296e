"""A web page to try a detector on: ``python -m diffguard_pl.demo``, with the extra ``demo``."""
