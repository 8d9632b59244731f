"""The tree-structured Parzen estimator: where good trials are dense and bad ones rare, look next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpo.core.history import Array, History
from hpo.search.random import draw as draw_random
from hpo.search.seen import Seen, unseen
from hpo.search.tpe import candidates
from hpo.search.tpe.density import Cells, Kernels
from hpo.search.tpe.split import split

if TYPE_CHECKING:
    from hpo.space import Space

__all__ = ["TPE"]


@dataclass(frozen=True)
class TPE:
    """Multivariate TPE over the active columns of the tree (Bergstra et al. 2011; Watanabe 2023,
    arXiv:2304.11127).

    The good trials' density l and the others' density g are mean kernels on the unit cube
    (`hpo.search.tpe.density`); of ``candidates`` points drawn from l, the first decides the branch of the
    tree, and of those in that branch the one of highest l / g is next.
    Failed trials are bad trials. So are waiting and running ones ("constant liar"): it keeps proposals
    that are made at the same time apart. No point is proposed twice while others are left; unless
    ``duplicates`` are allowed.

    The defaults were compared on 12 problems (neural-network surrogates, mixed-integer functions, nested
    trees) at 25 to 200 evaluations: 128 candidates instead of 24 helped most and more helped no further;
    ten random starts beat twenty; a prior share of 0.3 for choices beat 0.1; half the bandwidth helped
    where the space is nested; bandwidths from the spread of the good trials and weights by rank hurt.
    Ranking candidates of all branches together made no difference beyond noise there, but on three trees
    made to mislead it stayed in a mediocre branch in over half of the runs, not in one of eight.
    """

    starts: int = 10
    good_share: float = 0.1
    good_limit: int = 25
    candidates: int = 128
    bandwidth: float = 0.2
    nested_bandwidth: float = 0.1
    least_bandwidth: float = 0.01
    prior_share: float = 0.3
    duplicates: bool = False

    def propose(
        self, space: Space, history: History, pending: Array, rng: np.random.Generator, k: int
    ) -> Array:
        """See `hpo.search.Algorithm.propose`. Each proposal sees the ones before it as pending."""
        seen = Seen.of(history, pending, duplicates=self.duplicates)
        proposals = np.empty((k, len(space.columns)))
        if len(history) < self.starts:
            for i in range(k):
                proposals[i] = draw_random(space, seen, rng)
                seen.add(proposals[i])
            return proposals

        units = history.derived(space.to_unit)
        first, rest = split(history.losses, history.numbers, self.good_share, self.good_limit)
        good = self._kernels(space, units[first])
        for i in range(k):
            bad, liars = units[rest], np.concatenate([pending, proposals[:i]])
            if len(liars):
                bad = np.concatenate([bad, space.to_unit(liars)])
            rows = self._new_candidates(space, good, seen, rng)
            cells = Cells.of(space, rows)
            ratio = good.log_density(cells) - self._kernels(space, bad).log_density(cells)
            proposals[i] = rows[ratio.argmax()]
            seen.add(proposals[i])
        return proposals

    def _kernels(self, space: Space, units: Array) -> Kernels:
        """The bandwidth shrinks as Scott's rule does, with d the columns that a trial has on average."""
        is_nested = any(column.conditions for column in space.columns)
        widest = self.nested_bandwidth if is_nested else self.bandwidth
        n = max(len(units), 1)
        d = np.isfinite(units).sum() / n
        bandwidth = max(widest * n ** (-1 / (d + 4)), self.least_bandwidth)
        return Kernels(space.axes, units, bandwidth, self.prior_share)

    def _new_candidates(self, space: Space, good: Kernels, seen: Seen, rng: np.random.Generator) -> Array:
        """Points of one branch that no trial has, as long as there are some."""
        rows = candidates.draw(space, good, self.candidates, rng)
        new = rows[seen.is_new(rows)]
        if not len(new):
            new = unseen(space, seen, rng)
        return candidates.of_one_branch(new if len(new) else rows)
