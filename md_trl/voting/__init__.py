"""Vote over sampled answers, and score votes (Sec. 3.2 of https://huggingface.co/papers/2312.10730).

Answers are counted by their canonical form, and votes are returned in that form, so votes group answers exactly as
scoring compares them. [`vote`] is Eq. 5; with weights, it is its weighted form. Ties are decided in `votes.py` alone.
"""

from .calibration import (
    Calibrator,
    ReliabilityBin,
    expected_calibration_error,
    fit_calibrator,
    lead,
    reliability_bins,
)
from .path_weights import learn_path_weights
from .scores import score, score_flat
from .votes import TIE_BREAKS, Tally, majority, tally, usable, vote, vote_two
from .weights import WEIGHTS, VoteWeights, has_likelihoods, likelihood_weights


__all__ = [
    "TIE_BREAKS",
    "WEIGHTS",
    "Calibrator",
    "ReliabilityBin",
    "Tally",
    "VoteWeights",
    "expected_calibration_error",
    "fit_calibrator",
    "has_likelihoods",
    "lead",
    "learn_path_weights",
    "likelihood_weights",
    "majority",
    "reliability_bins",
    "score",
    "score_flat",
    "tally",
    "usable",
    "vote",
    "vote_two",
]
