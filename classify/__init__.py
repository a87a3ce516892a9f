"""Embeddings in, decisions out: heads, search, evaluation, saved models, prediction."""
