"""Every test of checkpoints has an empty cache."""

import pytest


@pytest.fixture(autouse=True)
def empty_cache(checkpoint_cache):
    """Keep the user's cache out of the tests."""
