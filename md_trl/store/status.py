"""The state of a store: what it holds, what is missing, and how many tokens it took."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .owner import BATCH_OWNER, IMPORT_OWNER, is_alive
from .selection import Selection, conditions


@dataclass(frozen=True)
class StatusRow:
    r"""
    The state of one task, split, path and setting.

    Args:
        task (`str`):
            Task of the questions.
        split (`str`):
            Split of the questions.
        path (`str`):
            Path of the thoughts.
        setting (`int`):
            Number of the setting, for `Selection(settings=...)`.
        model (`str`):
            Model of the setting.
        prompt_hash (`str`):
            Prompt of the setting.
        params (`dict[str, Any]`):
            Sampling parameters of the setting.
        n (`int`):
            Samples wanted per question: the most that were ever requested, 0 if all thoughts were imported.
        questions (`int`):
            Questions with at least one thought.
        thoughts (`int`):
            Thoughts, usable or not.
        distinct (`int`):
            Distinct texts among the thoughts of each question, summed over the questions. Far below `thoughts` if a
            server ignores `temperature` or `seed` and returns the same text again and again.
        missing (`int`):
            Samples to request until every question of the task and split has as many as were wanted of it: `n`, or
            fewer where adaptive sampling needs no more.
        unusable (`dict[str, int]`):
            Number of thoughts that did not end on their own, by finish reason.
        requests (`int`):
            Requests made. An imported thought counts as a request.
        failed (`int`):
            Requests that returned no samples.
        lost (`int`):
            Failed requests that may have been billed although their answer never arrived.
        prompt_tokens (`int`):
            Prompt tokens billed.
        completion_tokens (`int`):
            Completion tokens billed.
        served (`str`):
            Models named in the answers, where they differ from the model requested.
    """

    task: str
    split: str
    path: str
    setting: int
    model: str
    prompt_hash: str
    params: dict[str, Any]
    n: int
    questions: int
    thoughts: int
    distinct: int
    missing: int
    unusable: dict[str, int]
    requests: int
    failed: int
    lost: int
    prompt_tokens: int
    completion_tokens: int
    served: str


@dataclass(frozen=True)
class Spending:
    r"""
    What the requests to one model took. A [`~md_trl.sampling.ledger.Ledger`] turns it into costs.

    Args:
        model (`str`):
            Name of the model.
        batch (`bool`):
            Whether the requests went through the Batch API.
        requests (`int`):
            Requests made.
        failed (`int`):
            Requests that returned no samples.
        prompt_tokens (`int`):
            Prompt tokens as counted by the server.
        cached_tokens (`int`):
            Prompt tokens among them that the server had in its cache.
        completion_tokens (`int`):
            Completion tokens as counted by the server.
        unknown (`int`):
            Requests whose cost is unknown, because they are open or lost.
        max_prompt_tokens (`int`):
            Upper bound on the prompt tokens of the unknown requests.
        max_completion_tokens (`int`):
            Upper bound on the completion tokens of the unknown requests.
        thoughts (`int`):
            Thoughts that the requests returned.
    """

    model: str
    batch: bool
    requests: int
    failed: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    unknown: int
    max_prompt_tokens: int
    max_completion_tokens: int
    thoughts: int


class Usage(NamedTuple):
    r"""
    What the requests for one question, path and setting took.

    Args:
        prompt_tokens (`int`):
            Prompt tokens as counted by the server.
        cached_tokens (`int`):
            Prompt tokens among them that the server had in its cache.
        completion_tokens (`int`):
            Completion tokens as counted by the server.
        thoughts (`int`):
            Thoughts in the store.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thoughts: int


# Requests and thoughts are grouped by task, split, path and setting, each on their own, and joined at the end.
_STATUS = """
WITH asked AS (
    SELECT q.task, q.split, r.path, r.setting, s.model, s.prompt_hash, s.params,
        max(iif(r.owner = ?, 0, r.first_index + r.n)) AS n,
        count(*) AS requests, count(r.error) AS failed, sum(r.lost) AS lost,
        CAST(total(json_extract(r.usage, '$.prompt_tokens')) AS INTEGER) AS prompt_tokens,
        CAST(total(json_extract(r.usage, '$.completion_tokens')) AS INTEGER) AS completion_tokens,
        ifnull(group_concat(DISTINCT iif(r.served != s.model, r.served, NULL)), '') AS served
    FROM requests r JOIN questions q ON q.key = r.question JOIN settings s ON s.id = r.setting
    WHERE {where} GROUP BY 1, 2, 3, 4
), found AS (
    SELECT a.task, a.split, a.path, a.setting, t.question, t.text, t.finish_reason,
        t.sample_index < ifnull(w.n, a.n) AS wanted
    FROM thoughts t JOIN questions q ON q.key = t.question
        JOIN asked a ON a.task = q.task AND a.split = q.split AND a.path = t.path AND a.setting = t.setting
        LEFT JOIN wanted w ON w.question = t.question AND w.path = t.path AND w.setting = t.setting
), stored AS (
    SELECT task, split, path, setting, count(DISTINCT question) AS questions, count(*) AS thoughts,
        count(DISTINCT question || ' ' || text) AS texts, sum(wanted) AS wanted
    FROM found GROUP BY 1, 2, 3, 4
), reasons AS (
    SELECT task, split, path, setting, finish_reason, count(*) AS thoughts
    FROM found WHERE finish_reason != 'stop' GROUP BY 1, 2, 3, 4, 5
), unusable AS (
    SELECT task, split, path, setting, json_group_object(finish_reason, thoughts) AS counts
    FROM reasons GROUP BY 1, 2, 3, 4
)
SELECT a.task, a.split, a.path, a.setting, a.model, a.prompt_hash, a.params, a.n, ifnull(t.questions, 0),
    ifnull(t.thoughts, 0), ifnull(t.texts, 0),
    (
        SELECT sum(ifnull(w.n, a.n)) FROM questions q
            LEFT JOIN wanted w ON w.question = q.key AND w.path = a.path AND w.setting = a.setting
        WHERE q.task = a.task AND q.split = a.split
    ) - ifnull(t.wanted, 0),
    ifnull(u.counts, '{{}}'), a.requests, a.failed, a.lost, a.prompt_tokens, a.completion_tokens, a.served
FROM asked a LEFT JOIN stored t USING (task, split, path, setting)
    LEFT JOIN unusable u USING (task, split, path, setting)
ORDER BY 1, 2, 3, 4
"""


def status(db: sqlite3.Connection, selection: Selection) -> list[StatusRow]:
    r"""
    Summarize what a store holds, what is missing, what is unusable, and what it took.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        selection ([`Selection`]):
            What to select.

    Returns:
        `list[StatusRow]`: One row per task, split, path and setting.
    """
    where, values = conditions(selection, "r")
    rows = []
    for columns in db.execute(_STATUS.format(where=where), [IMPORT_OWNER, *values]):
        row = StatusRow(*columns)
        rows.append(replace(row, params=json.loads(row.params), unusable=json.loads(row.unusable)))
    return rows


def spending(db: sqlite3.Connection, selection: Selection) -> list[Spending]:
    r"""
    Sum up the requests behind the selected thoughts. Imported thoughts were paid for elsewhere and are left out.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        selection ([`Selection`]):
            What to select.

    Returns:
        `list[Spending]`: One entry per model, and another one for its requests through the Batch API.
    """
    where, values = conditions(selection, "r")
    rows = db.execute(
        "SELECT s.model, r.batch IS NOT NULL, count(*), count(r.error), "
        "total(json_extract(r.usage, '$.prompt_tokens')), total(json_extract(r.usage, '$.cached_tokens')), "
        "total(json_extract(r.usage, '$.completion_tokens')), total(r.lost OR r.ended_at IS NULL), "
        "total(iif(r.lost OR r.ended_at IS NULL, r.max_prompt_tokens, 0)), "
        "total(iif(r.lost OR r.ended_at IS NULL, r.n * r.max_completion_tokens, 0)), "
        "total((SELECT count(*) FROM thoughts t WHERE t.question = r.question AND t.path = r.path "
        "AND t.setting = r.setting AND t.request = r.id)) "
        "FROM requests r JOIN questions q ON q.key = r.question JOIN settings s ON s.id = r.setting "
        f"WHERE r.owner != ? AND {where} GROUP BY 1, 2 ORDER BY 1, 2",
        [IMPORT_OWNER, *values],
    )
    return [Spending(model, bool(batch), *map(int, figures)) for model, batch, *figures in rows]


def unfinished(db: sqlite3.Connection, selection: Selection) -> list[str]:
    r"""
    Name what a running process or a batch is sampling.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        selection ([`Selection`]):
            What to select.

    Returns:
        `list[str]`: One description per task, split, path, model and kind of owner.
    """
    where, values = conditions(selection, "r")
    rows = db.execute(
        "SELECT q.task || '/' || q.split || ', ' || r.path || ' of ' || s.model, r.owner, max(r.created_at), sum(r.n) "
        "FROM requests r JOIN questions q ON q.key = r.question JOIN settings s ON s.id = r.setting "
        f"WHERE r.ended_at IS NULL AND {where} GROUP BY 1, 2 ORDER BY 1, 2",
        values,
    )
    samples: Counter[tuple[str, str]] = Counter()
    for name, owner, created_at, n in rows:
        if is_alive(owner, created_at):
            samples[name, "a batch" if owner == BATCH_OWNER else "a running process"] += n
    return [f"{name}: {n:,} samples by {owner}" for (name, owner), n in samples.items()]


def dates(db: sqlite3.Connection, selection: Selection) -> dict[str, str]:
    r"""
    Find out when the selected thoughts were sampled, and when they were imported.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        selection ([`Selection`]):
            What to select.

    Returns:
        `dict[str, str]`: First and last day in UTC under `sampled` and `imported`. A key without thoughts is left out.
    """
    where, values = conditions(selection, "r")
    rows = db.execute(
        "SELECT iif(r.owner = ?, 'imported', 'sampled'), date(min(r.ended_at), 'unixepoch'), "
        "date(max(r.ended_at), 'unixepoch') FROM requests r JOIN questions q ON q.key = r.question "
        f"JOIN settings s ON s.id = r.setting WHERE r.error IS NULL AND r.ended_at IS NOT NULL AND {where} "
        "GROUP BY 1 ORDER BY 1 DESC",
        [IMPORT_OWNER, *values],
    )
    return {how: " to ".join(dict.fromkeys(days)) for how, *days in rows}


def usage(db: sqlite3.Connection, question: int, path: str, setting: int, n: int | None = None) -> Usage:
    r"""
    Sum up the requests for one question, path and setting.

    Args:
        db (`sqlite3.Connection`):
            The open store.
        question (`int`):
            Key of the question.
        path (`str`):
            Path of the samples.
        setting (`int`):
            Number of their setting.
        n (`int`, *optional*):
            Number of samples to count, the first ones. A request for others as well counts in proportion. Defaults to
            all.

    Returns:
        [`Usage`]: Their tokens and thoughts.
    """
    which = "WHERE question = ?1 AND path = ?2 AND setting = ?3"
    share = "iif(?4 IS NULL, 1, min(max(?4 - first_index, 0), n) / CAST(n AS REAL))"
    tokens = ", ".join(
        f"round(total(json_extract(usage, '$.{name}') * {share}))"
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    row = db.execute(
        f"SELECT {tokens}, (SELECT count(*) FROM thoughts {which} AND (?4 IS NULL OR sample_index < ?4)) "
        f"FROM requests {which}",
        (question, path, setting, n),
    ).fetchone()
    return Usage(*map(int, row))
