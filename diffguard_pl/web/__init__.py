"""What the web demo and the server share: allowed hosts, limits, and refused requests."""
