"""Our search for `hyperopt.fmin`, and hyperopt's algorithms for our studies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import hyperopt
import numpy as np

from hpo.core.errors import SearchExhausted, UsageError
from hpo.core.history import Array, History
from hpo.search.auto import Auto
from hpo.space import Space, compile_space

Suggest = Callable[[Sequence[int], hyperopt.Domain, hyperopt.Trials, int], list[dict[str, Any]]]


def suggest(
    new_ids: Sequence[int], domain: hyperopt.Domain, trials: hyperopt.Trials, seed: int
) -> list[dict[str, Any]]:
    """`hpo`'s search for hyperopt: ``fmin(objective, space, algo=hpo.suggest, max_evals=100)``.

    Answers every one of ``new_ids``, so that ``max_queue_len`` and parallel trials keep their points apart.
    A trial counts when it is done with status ok and a finite loss; one that ended otherwise is bad, one
    that has not ended is pending. The same trials and seed give the same points.
    """
    space = _space(domain)
    history, pending = _read(space, trials)
    rows = AUTO.propose(space, history, pending, np.random.default_rng(seed), len(new_ids))
    miscs = [_misc(space, domain, tid, row) for tid, row in zip(new_ids, rows, strict=True)]
    results = [domain.new_result() for _ in new_ids]
    docs: list[dict[str, Any]] = trials.new_trial_docs(new_ids, [None] * len(new_ids), results, miscs)
    return docs


class HyperoptAlgorithm:
    """An algorithm made for hyperopt, as an `hpo.search.Algorithm`.

    Each proposal shows it the history as the trials of an fmin, where a failed trial has no loss. It is
    asked for one trial at a time: most of hyperopt's algorithms answer the first id only. What it answers
    is taken as it is, a point that was evaluated before too.
    """

    def __init__(self, function: Suggest) -> None:
        self._function = function

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`. Raises SearchExhausted where the algorithm proposes nothing."""
        domain = _domain(space)
        trials = _write(space, domain, history, pending)
        proposals = np.empty((k, len(space.columns)))
        for i in range(k):
            (tid,) = trials.new_trial_ids(1)
            name = getattr(self._function, "__name__", repr(self._function))
            try:
                docs = self._function([tid], domain, trials, int(rng.integers(2**31 - 1)))
            except Exception as error:
                raise UsageError(
                    f"the algorithm {name} failed: {type(error).__name__}: {error}",
                    "it is called as hyperopt calls it: (new_ids, domain, trials, seed)",
                ) from error
            if not docs:
                raise SearchExhausted(
                    f"the algorithm {name} proposes no further trial",
                    "it has nothing left to try: ask for fewer trials, or choose another --algo",
                )
            proposals[i] = _completed(space, _row(space.labels, docs[0]["misc"]["vals"]), rng)
            _insert(trials, [_doc(space, domain, tid, proposals[i], None)])
        return proposals


AUTO = Auto()

_spaces: WeakKeyDictionary[hyperopt.Domain, Space] = WeakKeyDictionary()
_domains: WeakKeyDictionary[Space, hyperopt.Domain] = WeakKeyDictionary()


def _space(domain: hyperopt.Domain) -> Space:
    if domain not in _spaces:
        _spaces[domain] = compile_space(domain.expr)
    return _spaces[domain]


def _domain(space: Space) -> hyperopt.Domain:
    if space not in _domains:
        _domains[space] = hyperopt.Domain(_never_called, space.expression)
    return _domains[space]


def _never_called(params: Any) -> float:
    raise AssertionError("a domain made for suggestions evaluates nothing")


def _read(space: Space, trials: hyperopt.Trials) -> tuple[History, Array]:
    """The ended trials, and the rows of the others."""
    history, pending = History(len(space.columns)), []
    labels = space.labels
    # `trials.trials` leaves out those that ended with an exception, which the search should keep away from.
    for doc in trials._dynamic_trials:
        if trials._exp_key is not None and doc["exp_key"] != trials._exp_key:
            continue
        row = _row(labels, doc["misc"]["vals"])
        if doc["state"] in (hyperopt.JOB_STATE_NEW, hyperopt.JOB_STATE_RUNNING):
            pending.append(row)
        else:
            history.append(doc["tid"], row, _loss(doc))
    return history, np.array(pending).reshape(len(pending), len(labels))


def _loss(doc: Mapping[str, Any]) -> float | None:
    result = doc["result"]
    if doc["state"] != hyperopt.JOB_STATE_DONE or result.get("status") != hyperopt.STATUS_OK:
        return None
    loss = result.get("loss")
    return None if loss is None else float(loss)


def _row(labels: Sequence[str], vals: Mapping[str, Sequence[float]]) -> Array:
    return np.array([vals[label][0] if vals.get(label) else math.nan for label in labels], dtype=float)


def _completed(space: Space, row: Array, rng: np.random.Generator) -> Array:
    """The row with its active columns only; one that the algorithm left out is drawn from the prior."""
    prior = space.from_unit(rng.random((1, len(row))))[0]
    filled = np.where(np.isnan(row), prior, row)
    completed: Array = space.mask(filled[np.newaxis])[0]
    return completed


def _misc(space: Space, domain: hyperopt.Domain, tid: int, row: Array) -> dict[str, Any]:
    point = space.point(row)
    labels = list(domain.params)  # of them `space` lacks those that were fixed
    return {
        "tid": tid,
        "cmd": domain.cmd,
        "workdir": domain.workdir,
        "idxs": {label: [tid] if label in point else [] for label in labels},
        "vals": {label: [point[label]] if label in point else [] for label in labels},
    }


def _doc(
    space: Space, domain: hyperopt.Domain, tid: int, row: Array, result: dict[str, Any] | None
) -> dict[str, Any]:
    """A trial of hyperopt; it is running where there is no result."""
    state = hyperopt.JOB_STATE_RUNNING if result is None else hyperopt.JOB_STATE_DONE
    return {
        "state": state,
        "tid": tid,
        "spec": None,
        "result": domain.new_result() if result is None else result,
        "misc": _misc(space, domain, tid, row),
        "exp_key": None,
        "owner": None,
        "version": 0,
        "book_time": None,
        "refresh_time": None,
    }


def _write(space: Space, domain: hyperopt.Domain, history: History, pending: Array) -> hyperopt.Trials:
    """The history as hyperopt keeps it, by trial number: some algorithms weigh the latest trials more."""
    docs: list[dict[str, Any]] = []
    for i in np.argsort(history.numbers, kind="stable"):
        loss = float(history.losses[i])
        ok = {"status": hyperopt.STATUS_OK, "loss": loss}
        result = ok if math.isfinite(loss) else {"status": hyperopt.STATUS_FAIL}
        docs.append(_doc(space, domain, len(docs), history.rows[i], result))
    for row in pending:
        docs.append(_doc(space, domain, len(docs), row, None))
    trials = hyperopt.Trials()
    _insert(trials, docs)
    return trials


def _insert(trials: hyperopt.Trials, docs: list[dict[str, Any]]) -> None:
    # Not through insert_trial_docs, which copies every document, for a database that is not there.
    trials._insert_trial_docs(docs)
    trials.refresh()
