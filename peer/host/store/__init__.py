"""Models as files: the catalogue, what fits, how they are fetched, and their digests."""
