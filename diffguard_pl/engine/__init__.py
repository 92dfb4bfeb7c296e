"""Ways to run the method: in full batches across images, or in plain loops."""
