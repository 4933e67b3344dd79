"""Sampling: ask a model for thoughts and keep each of them in a store. Nothing here judges an answer.

In: questions, a prompt for each, an engine. Out: thoughts in a [`~md_trl.store.Store`] and a [`SampleSummary`]. The
paper samples a teacher in Sec. 3.1 and a student in Sec. 3.2.
"""

from .run import SampleSummary
from .sampler import sample


__all__ = ["SampleSummary", "sample"]
