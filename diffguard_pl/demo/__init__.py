"""A web page to try a detector on: ``diffguard-pl demo``, with the extra ``demo``."""
