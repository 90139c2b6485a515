"""The semantics of a union, without FUSE; ``core.py`` says where to begin reading."""
