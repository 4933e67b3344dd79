"""Ask a model for thoughts, and keep each of them: the store, the sampler, the engines."""

from .sampler import SampleSummary, sample
from .store import Store


__all__ = ["SampleSummary", "Store", "sample"]
