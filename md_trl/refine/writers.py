"""Who wrote a thought, and in which round: the store keeps own thoughts under the student's name and the round.

The name is `STUDENT@DIGEST/round-R`: the student that was sampled in round R, with a digest of its weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..sampling.engines import Engine, SampleRequest, SampleResult


_WRITER = re.compile(r".*@[0-9a-f]{8}/round-([1-9]\d*)")


def writer_name(student: str, round_: int) -> str:
    """Return the name under which a store keeps what a student, named with its digest, wrote in a round."""
    return f"{student}/round-{round_}"


def round_of(writer: str) -> int | None:
    """Return the round in which a thought was written; `None` if its writer is no student that is refined."""
    found = _WRITER.fullmatch(writer)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class NamedEngine:
    r"""
    An [`~md_trl.sampling.engines.Engine`] whose samples a store keeps under another name.

    Args:
        engine ([`~md_trl.sampling.engines.Engine`]):
            The engine.
        model (`str`):
            The name.
    """

    engine: Engine
    model: str

    def student_prompt_format(self, prompt_format: str = "auto") -> str:
        """Decide how the student is asked, as its engine does."""
        return self.engine.student_prompt_format(prompt_format)

    def generate(self, requests: Iterable[SampleRequest]) -> Iterator[SampleResult]:
        """Sample, as the engine does."""
        return self.engine.generate(requests)
