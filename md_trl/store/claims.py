"""Claims: which process may request which sample, so that no sample is paid for twice.

Under one setting the samples of a question and path are numbered 0, 1, 2, ... A sample is claimed before it is
requested and stored when its text arrives. So two processes on one store never request the same sample, and a killed
process leaves nothing behind but open claims, which the next run takes over. Samples claimed for a job of the Batch
API belong to the job and not to a process.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..records import Choice
from .owner import BATCH_OWNER, is_alive
from .questions import Questions
from .schema import transaction


ABANDONED = "abandoned: the process that made the request has ended"
"""Error of a request whose process ended before the answer arrived."""


class Claim(NamedTuple):
    r"""
    The right to request consecutive samples of one question and path.

    Args:
        key (`int`):
            Number of the request in the store.
        first_index (`int`):
            Index of the first sample.
        n (`int`):
            Number of samples.
    """

    key: int
    first_index: int
    n: int


class Granted(NamedTuple):
    r"""
    What a call of [`Claims.claim`] granted.

    Args:
        claims (`list[Claim]`):
            One claim per request to make. End each with [`Claims.save`] or [`Claims.fail`].
        refused (`int`):
            Number of requests that `allow` turned down.
    """

    claims: list[Claim]
    refused: int


class Claims:
    r"""
    Keeps track of which samples of a store are stored, claimed or missing.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        questions ([`Questions`]):
            Its questions.
        owner (`str`):
            Owner of the claims made through this object.
    """

    def __init__(self, db: sqlite3.Connection, questions: Questions, owner: str):
        self._db, self._questions, self._owner = db, questions, owner

    def want(self, samples: Iterable[tuple[str, str, int]], n: int) -> None:
        r"""
        Record that a run wants `n` samples of each question and path, so that the status can count what is missing.

        Args:
            samples (`Iterable[tuple[str, str, int]]`):
                Question id, path and number of the setting.
            n (`int`):
                Number of samples wanted. A larger number from an earlier run stays.
        """
        with transaction(self._db):
            self._db.executemany(
                "INSERT INTO wanted SELECT key, ?, ?, ? FROM questions WHERE id = ? "
                "ON CONFLICT (question, path, setting) DO UPDATE SET n = max(n, excluded.n)",
                ((path, setting, n, question_id) for question_id, path, setting in samples),
            )

    def missing(self, question_id: str, path: str, setting: int, n: int) -> list[int]:
        r"""
        List the samples that are not stored, whether or not they are claimed.

        Args:
            question_id (`str`):
                Id of the question.
            path (`str`):
                Path of the samples.
            setting (`int`):
                Number of their setting.
            n (`int`):
                Number of samples wanted.

        Returns:
            `list[int]`: The missing indices out of `range(n)`.
        """
        stored = self._stored(self._questions.key(question_id), path, setting)
        return [index for index in range(n) if index not in stored]

    def taken(self, question_id: str, path: str, setting: int) -> set[int]:
        r"""
        Find the samples that are stored, or claimed by a running process or a batch.

        Args:
            question_id (`str`):
                Id of the question.
            path (`str`):
                Path of the samples.
            setting (`int`):
                Number of their setting.

        Returns:
            `set[int]`: Their indices.
        """
        question = self._questions.key(question_id)
        return self._stored(question, path, setting) | self._claimed(question, path, setting)

    def claim(
        self,
        question_id: str,
        path: str,
        setting: int,
        n: int,
        *,
        max_samples: int | None = None,
        max_prompt_tokens: int = 0,
        max_completion_tokens: int = 0,
        batch: int | None = None,
        allow: Callable[[list[int]], int] | None = None,
    ) -> Granted:
        r"""
        Claim all samples that are neither stored nor claimed by a running process or a batch.

        Args:
            question_id (`str`):
                Id of the question.
            path (`str`):
                Path of the samples.
            setting (`int`):
                Number of their setting.
            n (`int`):
                Number of samples wanted in all.
            max_samples (`int`, *optional*, defaults to `n`):
                Maximum number of samples per request.
            max_prompt_tokens (`int`, *optional*, defaults to `0`):
                Upper bound on the tokens of the prompt. With `max_completion_tokens` it bounds the cost of requests
                that are open or lost, see [`Store.spending`].
            max_completion_tokens (`int`, *optional*, defaults to `0`):
                Upper bound on the tokens of one sample.
            batch (`int`, *optional*):
                Number of the batch that the claims belong to. By default they belong to this process.
            allow (`Callable[[list[int]], int]`, *optional*):
                Called with the number of samples of each request that would be made, at a moment when nobody else can
                claim. Returns how many of these requests, counted from the first, may be made. By default all may.

        Returns:
            [`Granted`]: The claims.

        Raises:
            `InputError`: The store does not hold the question.
        """
        with transaction(self._db):
            taken = self.taken(question_id, path, setting)
            runs = list(_runs([index for index in range(n) if index not in taken], max_samples or n))
            allowed = runs if allow is None or not runs else runs[: allow([count for _, count in runs])]
            question = self._questions.key(question_id)
            owner = self._owner if batch is None else BATCH_OWNER
            claims = []
            for first, count in allowed:
                key = self._db.execute(
                    "INSERT INTO requests (question, path, setting, first_index, n, max_prompt_tokens, "
                    "max_completion_tokens, owner, batch, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (question, path, setting, first, count)
                    + (max_prompt_tokens, max_completion_tokens, owner, batch, time.time()),
                ).lastrowid
                claims.append(Claim(key, first, count))
            return Granted(claims, len(runs) - len(allowed))

    def save(self, key: int, choices: Sequence[Choice], usage: Mapping[str, Any], served: str | None = None) -> int:
        r"""
        Store the samples that a request returned, in one transaction.

        Args:
            key (`int`):
                Number of the request, from its [`Claim`].
            choices (`Sequence[Choice]`):
                The samples in order. Samples beyond those claimed are ignored.
            usage (`Mapping[str, Any]`):
                Token counts: `prompt_tokens`, `cached_tokens`, `completion_tokens`.
            served (`str`, *optional*):
                Name of the model in the answer.

        Returns:
            `int`: The number of new thoughts.
        """
        with transaction(self._db):
            question, path, setting, first, n = self._db.execute(
                "SELECT question, path, setting, first_index, n FROM requests WHERE id = ?", (key,)
            ).fetchone()
            self._end(key, usage, None, served=served)
            rows = [
                (key, question, path, setting, first + i, i, choice.text.strip(), choice.finish_reason, choice.logprob)
                for i, choice in enumerate(choices[:n])
            ]
            # IGNORE: if this process was taken for dead, another one may have stored the same sample.
            cursor = self._db.executemany(
                "INSERT OR IGNORE INTO thoughts "
                "(request, question, path, setting, sample_index, choice_index, text, finish_reason, logprob) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            return max(cursor.rowcount, 0)

    def fail(self, key: int, error: str, usage: Mapping[str, Any] | None = None, lost: bool = False) -> None:
        r"""
        Record that a request returned no samples, so that they can be claimed again.

        Args:
            key (`int`):
                Number of the request, from its [`Claim`].
            error (`str`):
                What went wrong.
            usage (`Mapping[str, Any]`, *optional*, defaults to `{}`):
                Tokens that were billed nevertheless.
            lost (`bool`, *optional*, defaults to `False`):
                Whether the request may have been billed although its answer never arrived.
        """
        with transaction(self._db):
            self._end(key, usage or {}, error, lost)

    def release(self) -> None:
        """Give up the open claims that were made through this object."""
        with transaction(self._db):
            self._db.execute(
                "UPDATE requests SET ended_at = ?, error = ?, lost = 1 WHERE ended_at IS NULL AND owner = ?",
                (time.time(), ABANDONED, self._owner),
            )

    def _stored(self, question: int, path: str, setting: int) -> set[int]:
        rows = self._db.execute(
            "SELECT sample_index FROM thoughts WHERE question = ? AND path = ? AND setting = ?",
            (question, path, setting),
        )
        return {index for (index,) in rows}

    def _claimed(self, question: int, path: str, setting: int) -> set[int]:
        """The samples that a running process or a batch has requested. Claims of dead processes are ended."""
        rows = self._db.execute(
            "SELECT id, first_index, n, owner, created_at FROM requests "
            "WHERE question = ? AND path = ? AND setting = ? AND ended_at IS NULL",
            (question, path, setting),
        ).fetchall()
        claimed: set[int] = set()
        for key, first, n, owner, created_at in rows:
            if is_alive(owner, created_at):
                claimed.update(range(first, first + n))
            else:
                self._end(key, {}, ABANDONED, lost=True)
        return claimed

    def _end(
        self, key: int, usage: Mapping[str, Any], error: str | None, lost: bool = False, served: str | None = None
    ) -> None:
        self._db.execute(
            "UPDATE requests SET ended_at = ?, usage = ?, error = ?, lost = ?, served = ? WHERE id = ?",
            (time.time(), json.dumps(usage, sort_keys=True), error, lost, served, key),
        )


def _runs(indices: Sequence[int], max_length: int) -> Iterator[tuple[int, int]]:
    """Split ascending indices into runs of consecutive ones, each as (first, length)."""
    start = 0
    for end in range(1, len(indices) + 1):
        if end == len(indices) or indices[end] != indices[end - 1] + 1 or end - start == max_length:
            yield indices[start], end - start
            start = end
