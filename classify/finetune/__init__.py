"""Training a network end to end, from pictures: the cache is bypassed, and what comes out is a saved model."""
