"""Sampling: ask a model for thoughts and record each of them in a store. A sampler never judges an answer."""

from .sampler import SampleSummary, sample


__all__ = ["SampleSummary", "sample"]
