"""A Gaussian process: the search for a budget of tens to a few hundred trials."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hpo.core.history import Array, History
from hpo.search.gp.acquisition import log_expected_improvement
from hpo.search.gp.candidates import maximise
from hpo.search.gp.features import Features
from hpo.search.gp.losses import rarity, standardised
from hpo.search.gp.model import Hyperparameters, Posterior, Priors, condition, fit, squared_distances
from hpo.search.random import draw
from hpo.search.seen import Seen

if TYPE_CHECKING:
    from hpo.space import Space

__all__ = ["GP"]

REMEMBERED = 8
"""Hyperparameters kept for the next suggestion: more than one, as a process may drive several studies."""


@dataclass(frozen=True)
class GP:
    """Bayesian optimization with a Gaussian process (Jones et al. 1998; Snoek et al. 2012, arXiv:1206.2944).

    After ``starts`` draws from the prior, a model of the losses (`hpo.search.gp.model`) over the embedded
    rows (`hpo.search.gp.features`) proposes the row of the highest log expected improvement on the best mean
    at a trial, so that luck in noise is not to be beaten. Waiting and running trials are taken to end as the
    model expects, no better than the best (between Ginsbourger et al.'s 2010 kriging believer and their
    constant liar): proposals keep apart.

    Every ``explore``-th proposal lies ``apart`` from all trials: a model that is wrong finds what it knows
    best the most promising, and would stay there for ever.

    Hyperparameters are fitted anew whenever there are ``refit`` times as many trials, to the first so many
    of them: the fit costs most of a suggestion. They are a function of those trials and their order: a study
    of one worker that is continued proposes what it would have proposed.

    ``most``: trials in the model. ``duplicates``: a point may be tried again. ``wide``, ``rounds``: see
    `maximise`; ``clip``: see `standardised`; ``width``: see `rarity`.
    """

    starts: int = 5
    wide: int = 500
    rounds: int = 5
    priors: Priors = field(default_factory=Priors)
    clip: float = 2.0
    width: float = 0.1
    refit: float = 1.1
    explore: int = 4
    apart: float = 0.3
    most: int = 500
    duplicates: bool = False
    _fitted: dict[bytes, Hyperparameters] = field(default_factory=dict, init=False, repr=False, compare=False)

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`. Each proposal sees the ones before it as pending."""
        seen = Seen.of(history, pending, duplicates=self.duplicates)
        is_starting = len(history) < self.starts or not space.columns
        known = None if is_starting else self._known(space, history, pending)
        proposals = np.empty((k, len(space.columns)))
        for i in range(k):
            apart = self.apart if (len(history) + len(pending) + i) % self.explore == 0 else 0.0
            row = None if known is None else known.propose(self.wide, self.rounds, apart, seen, rng)
            proposals[i] = draw(space, seen, rng) if row is None else row
            seen.add(proposals[i])
            if known is not None and i + 1 < k:
                known = known.believing(proposals[i : i + 1])
        return proposals

    def _known(self, space: Space, history: History, pending: Array) -> _Known:
        features = Features.of(space)
        kept = self._kept(history.losses)
        units = history.derived(space.to_unit)[kept]
        vectors = features.embed(history.rows[kept], units)
        losses = self._standardised(vectors, history.losses[kept])
        hyperparameters = self._hyperparameters(features, history)
        posterior = condition(vectors, features.owner, losses, hyperparameters)
        best = float(posterior.predict(vectors)[0].min())
        good = units[np.argsort(losses, kind="stable")[:GOOD]]
        known = _Known(features, vectors, losses, hyperparameters, posterior, best, good)
        return known.believing(pending) if len(pending) else known

    def _kept(self, losses: Array) -> NDArray[np.intp]:
        """Indices of the trials that the model is of: all, or of too many the best half and the latest."""
        if len(losses) <= self.most:
            return np.arange(len(losses))
        half = self.most // 2
        best = np.argsort(losses, kind="stable")[:half]
        return np.union1d(best, np.arange(len(losses) - half, len(losses)))

    def _hyperparameters(self, features: Features, history: History) -> Hyperparameters:
        n = self.starts
        while (larger := max(n + 1, int(n * self.refit))) <= min(len(history), self.most):
            n = larger
        rows, losses = history.rows[:n], history.losses[:n]
        key = blake2b(rows.tobytes() + losses.tobytes(), key=features.space.fingerprint.encode()).digest()
        if key not in self._fitted:
            while len(self._fitted) >= REMEMBERED:
                del self._fitted[next(iter(self._fitted))]
            vectors = features.embed(rows, history.derived(features.space.to_unit)[:n])
            active = float(np.isfinite(rows).sum(axis=1).mean())
            standard = self._standardised(vectors, losses)
            self._fitted[key] = fit(vectors, features.owner, standard, active, self.priors)
        return self._fitted[key]

    def _standardised(self, vectors: Array, losses: Array) -> Array:
        return standardised(losses, rarity(vectors, self.width), self.clip)


TINY = 1e-300

GOOD = 10
"""Near how many of the best trials candidates are looked for."""


@dataclass(frozen=True)
class _Known:
    """What a proposal is made from.

    ``best``: the lowest mean at a trial that ended; ``good``: ``(trials, columns)``, the best ones in
    the unit cube.
    """

    features: Features
    vectors: Array
    losses: Array
    hyperparameters: Hyperparameters
    posterior: Posterior
    best: float
    good: Array

    def propose(
        self, wide: int, rounds: int, apart: float, seen: Seen, rng: np.random.Generator
    ) -> Array | None:
        """The row of highest log expected improvement, weighed down within about ``apart`` of every trial."""

        def score(rows: Array) -> Array:
            vectors = self.features.embed(rows, self.features.space.to_unit(rows))
            gain = log_expected_improvement(*self.posterior.predict(vectors), self.best)
            if not apart:
                return gain
            nearest = squared_distances(vectors, self.vectors).min(axis=1)
            return gain + np.log(np.maximum(-np.expm1(nearest / (-2.0 * apart**2)), TINY))

        return maximise(self.features.space, score, self.good, wide, rounds, seen, rng)

    def believing(self, rows: Array) -> _Known:
        """As if these rows had ended with the loss that is expected of them, but none better than the best:
        where an improvement is being waited for, none is left to be made."""
        more = self.features.embed(rows, self.features.space.to_unit(rows))
        vectors = np.vstack([self.vectors, more])
        expected = np.maximum(self.posterior.predict(more)[0], self.best)
        losses = np.append(self.losses, expected)
        posterior = condition(vectors, self.features.owner, losses, self.hyperparameters)
        return replace(self, vectors=vectors, losses=losses, posterior=posterior)
