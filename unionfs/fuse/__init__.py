"""FUSE: requests in, replies out."""
