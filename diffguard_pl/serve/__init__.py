"""HTTP server that decides on images: ``diffguard-pl serve``, with the extra ``serve``."""
