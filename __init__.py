"""Embed every image once with a frozen pretrained backbone, cache the embeddings, train classifiers in seconds."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
