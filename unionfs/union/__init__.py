"""The semantics of a union, without FUSE: see ``core.py`` for the whole, and where to begin reading."""
