"""Web page for trying a detector: ``diffguard-pl demo``, with the extra ``demo``."""
