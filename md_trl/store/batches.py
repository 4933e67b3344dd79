"""Jobs of the Batch API: how far each has got, and which of its requests are open."""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

from ..records import SamplingParams
from .owner import is_alive
from .schema import transaction
from .settings import sampling_params


class Batch(NamedTuple):
    r"""
    A job of the Batch API that has not ended.

    Args:
        id (`int`):
            Number of the job in the store.
        endpoint (`str`):
            Endpoint that its requests are sent to, for example `/v1/chat/completions`.
        file_id (`str`, *optional*):
            The server's id of the uploaded file, `None` before the upload.
        batch_id (`str`, *optional*):
            The server's id of the job, `None` before the server has created it.
    """

    id: int
    endpoint: str
    file_id: str | None
    batch_id: str | None


class OpenRequest(NamedTuple):
    r"""
    A request that has not ended.

    Args:
        key (`int`):
            Number of the request in the store.
        question_id (`str`):
            Id of the question.
        path (`str`):
            Path of the samples.
        n (`int`):
            Number of samples.
        params ([`~md_trl.records.SamplingParams`]):
            What they are sampled with.
    """

    key: int
    question_id: str
    path: str
    n: int
    params: SamplingParams


class Batches:
    r"""
    The jobs of the Batch API in a store.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        owner (`str`):
            Owner of the jobs added or taken through this object.
    """

    def __init__(self, db: sqlite3.Connection, owner: str):
        self._db, self._owner = db, owner

    def add(self, base_url: str, endpoint: str) -> int:
        r"""
        Add a job, so that samples can be claimed for it.

        Args:
            base_url (`str`):
                Root of the server's API.
            endpoint (`str`):
                Endpoint of its requests.

        Returns:
            `int`: Number of the job.
        """
        with transaction(self._db):
            return self._db.execute(
                "INSERT INTO batches (base_url, endpoint, owner, created_at) VALUES (?, ?, ?, ?)",
                (base_url, endpoint, self._owner, time.time()),
            ).lastrowid

    def take(self, base_url: str) -> list[Batch]:
        r"""
        Take over the jobs at a server that have not ended and that no other running process looks after.

        Args:
            base_url (`str`):
                Root of the server's API.

        Returns:
            `list[Batch]`: The jobs, oldest first.
        """
        with transaction(self._db):
            rows = self._db.execute(
                "SELECT id, owner, created_at, endpoint, file_id, batch_id FROM batches "
                "WHERE base_url = ? AND ended_at IS NULL ORDER BY id",
                (base_url,),
            ).fetchall()
            taken = []
            for id_, owner, created_at, *columns in rows:
                if owner == self._owner or not is_alive(owner, created_at):
                    self._db.execute("UPDATE batches SET owner = ? WHERE id = ?", (self._owner, id_))
                    taken.append(Batch(id_, *columns))
            return taken

    def update(self, batch: int, **columns: str | None) -> None:
        r"""
        Record how far a job has got.

        Args:
            batch (`int`):
                Number of the job.
            **columns (`str`, *optional*):
                New values of `file_id`, `batch_id` or `status`.
        """
        names = ", ".join(f"{name} = ?" for name in columns)
        with transaction(self._db):
            self._db.execute(f"UPDATE batches SET {names} WHERE id = ?", (*columns.values(), batch))

    def open_requests(self, batch: int) -> list[OpenRequest]:
        r"""
        List the requests of a job that have not ended.

        Args:
            batch (`int`):
                Number of the job.

        Returns:
            `list[OpenRequest]`: The requests, in the order they were claimed.
        """
        rows = self._db.execute(
            "SELECT r.id, q.id, r.path, r.n, s.params FROM requests r JOIN questions q ON q.key = r.question "
            "JOIN settings s ON s.id = r.setting WHERE r.batch = ? AND r.ended_at IS NULL ORDER BY r.id",
            (batch,),
        )
        return [OpenRequest(*columns, sampling_params(params)) for *columns, params in rows]

    def finish(self, batch: int, status: str, error: str) -> int:
        r"""
        End a job. Its open requests have returned nothing, and their samples can be claimed again.

        Args:
            batch (`int`):
                Number of the job.
            status (`str`):
                Its last status.
            error (`str`):
                Error to record for the open requests.

        Returns:
            `int`: The number of requests that were open.
        """
        with transaction(self._db):
            now = time.time()
            self._db.execute("UPDATE batches SET status = ?, ended_at = ? WHERE id = ?", (status, now, batch))
            return self._db.execute(
                "UPDATE requests SET ended_at = ?, error = ? WHERE batch = ? AND ended_at IS NULL", (now, error, batch)
            ).rowcount
