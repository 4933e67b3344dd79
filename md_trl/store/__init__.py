"""The store: every thought that was ever sampled, in one SQLite file, each paid for once."""

from .store import Store


__all__ = ["Store"]
