"""A classifier as one graph, for programs that know nothing of headstart."""
