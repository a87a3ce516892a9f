"""Embeddings at rest: feature spaces, immutable HDF5 parts, listings, lookup. Knows nothing of images or torch."""
