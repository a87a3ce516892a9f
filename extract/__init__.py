"""Images in, embeddings out: listing, decoding, backbones, the extraction loop."""
