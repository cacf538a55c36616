"""Several heads as one reward: their mean, their minimum, or their mean less what they disagree by.

Members' scores are standardised on training rows before they meet. A Bradley-Terry reward is known up to a
constant, and its scale grows with how long its member was trained: without a common zero and unit the
minimum would be the score of whichever member happens to lie lowest, and the variance would measure how the
members were scaled rather than where they disagree.

Sources: mean, worst case and uncertainty-weighted optimisation (UWO, here "mean-var"), Coste et al. (arXiv
2310.02743), section 4; the lower confidence bound (LCB, "mean-std") subtracts the deviation instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from decoder.contracts import UserError
from rewards import artefact
from rewards.head_files import read_head, save_head
from rewards.head_inputs import RowReader, Split, split_of_pairs, split_targets, target_array
from rewards.heads import Embeddings, Head, Scores, check_rule, fitted, load_head, make_head, nearest
from rewards.mlp_head import MlpHead, fit_together

KIND = "head_ensemble"
STANDARD_ROWS = 4096  # training rows that members' scores are standardised on
_OWN = ("head", "n_members", "rule", "kappa", "bootstrap", "seed")


def combine_members(scores: ArrayLike, rule: str, kappa: float = 0.5) -> Scores:
    """Return one score a row, (M,) float32, of members' standardised scores (E, M).

    rule: "mean"; "min"; "mean-var", the mean less kappa times the variance over members; "mean-std", less
    kappa times their standard deviation. Raises UserError for another rule, and for scores that are not
    (E, M) or not finite.
    """
    table = np.asarray(scores, dtype=np.float64)
    check_rule(rule, kappa)
    if table.ndim != 2 or not len(table):
        raise UserError(f"members' scores have shape {table.shape}: give (members, rows), one member or more")
    if not np.isfinite(table).all():
        member, row = np.argwhere(~np.isfinite(table))[0]
        raise UserError(f"member {member} gave row {row} the score {table[member, row]}: score it again")
    centre = table.mean(0)
    if rule == "min":
        centre = table.min(0)
    elif rule == "mean-var":
        centre = centre - kappa * table.var(0)
    elif rule == "mean-std":
        centre = centre - kappa * table.std(0)
    combined: Scores = centre.astype(np.float32)
    return combined


class HeadEnsemble:
    """Heads of one kind that differ in seed, and where asked in the pairs they drew, as one head.

    MLP members are trained together. After `fit`: `members_`, and `mean_` and `scale_` (E,) float32, by
    which each member's scores are standardised.
    """

    def __init__(
        self,
        head: Head | None = None,
        n_members: int = 5,
        rule: str = "mean",
        kappa: float = 0.5,
        bootstrap: bool = False,
        seed: int = 0,
    ) -> None:
        """Take the head whose copies are members ("bt-mlp" if None), and how they are combined.

        bootstrap: whether each member draws as many pairs with replacement, whole groups of them where
        there are groups. seed: members' own seeds are seed, seed + 1, ... Raises UserError for another
        rule, a kappa below 0 and no member.
        """
        check_rule(rule, kappa)
        if n_members < 1:
            raise UserError(f"n_members {n_members}: an ensemble needs 1 or more")
        self.head, self.n_members, self.rule, self.kappa = head, n_members, rule, kappa
        self.bootstrap, self.seed = bootstrap, seed
        self.members_: list[Head] = []
        self.mean_: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.scale_: NDArray[np.float32] = np.ones(0, dtype=np.float32)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the hyper-parameters by name, those of the head as head__NAME if deep."""
        inner = {} if self.head is None or not deep else self.head.get_params()
        return {"head": self.head, **self._own(), **{f"head__{name}": value for name, value in inner.items()}}

    def set_params(self, **changes: Any) -> HeadEnsemble:
        """Change hyper-parameters and return itself; rule and kappa hold at once, the others at `fit`."""
        for name in changes:
            if name not in _OWN and not name.startswith("head__"):
                raise UserError(f"unknown option {name!r}: {nearest(name, (*_OWN, 'head__NAME'))}")
        inner = {name.removeprefix("head__"): changes.pop(name) for name in list(changes) if "__" in name}
        check_rule(changes.get("rule", self.rule), changes.get("kappa", self.kappa))
        for name, value in changes.items():
            setattr(self, name, value)
        if inner:
            self.head = (self.head or make_head("bt-mlp")).set_params(**inner)
        return self

    def fit(self, X: Embeddings, y: Any, groups: ArrayLike | None = None) -> HeadEnsemble:
        """Learn from pairs of embeddings and return itself; arguments as in `MlpHead.fit`."""
        base = self.head or make_head("bt-mlp")
        seeds = range(self.seed, self.seed + self.n_members)
        members: list[Head] = [type(base)(**{**base.get_params(), "seed": seed}) for seed in seeds]
        targets, owners = self._targets(y, groups)
        mlps = [member for member in members if isinstance(member, MlpHead)]
        if len(mlps) == len(members):
            fit_together(mlps, X, targets, owners)
        else:
            for member, target, owner in zip(members, targets, owners, strict=True):
                member.fit(X, target, owner)
        self.members_ = members
        self._standardise(X, y, groups)
        return self

    def predict(self, X: ArrayLike) -> Scores:
        """Return combined scores (M,) float32 of embeddings (M, D); UserError as the members raise it."""
        return combine_members(self.member_scores(X), self.rule, self.kappa)

    def member_scores(self, X: ArrayLike) -> Scores:
        """Return each member's standardised scores (E, M) float32 of embeddings (M, D)."""
        return (self._raw(X) - self.mean_[:, None]) / self.scale_[:, None]

    def save_pretrained(
        self,
        directory: str | Path,
        encoder: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the fitted ensemble, each member in a folder of its own under `members`."""
        folders = [Path(directory) / "members" / str(number) for number in range(len(self.members_))]
        for folder, member in zip(folders, fitted(self.members_, "ensemble"), strict=True):
            member.save_pretrained(folder, encoder)
        dimension = artefact.read_config(folders[0])["dimension"]
        tensors = {"mean": torch.from_numpy(self.mean_), "scale": torch.from_numpy(self.scale_)}
        save_head(Path(directory), KIND, (dimension, self._own(), tensors), encoder, about)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, dimension: int | None = None, encoder: Mapping[str, Any] | None = None
    ) -> HeadEnsemble:
        """Load a saved ensemble. Raises UserError as the members' own kinds do."""
        directory = Path(directory)
        saved = read_head(directory, KIND, dimension, encoder)
        ensemble = cls().set_params(**saved.options)
        folders = [directory / "members" / str(number) for number in range(ensemble.n_members)]
        ensemble.members_ = [load_head(folder, saved.dimension, encoder) for folder in folders]
        ensemble.head = ensemble.members_[0]
        tensors = artefact.read_tensors(directory)
        if any(tensors[name].shape != (len(folders),) for name in ("mean", "scale")):
            raise UserError(
                f"{directory}: weights and config disagree on {len(folders)} members: train it again"
            )
        ensemble.mean_, ensemble.scale_ = tensors["mean"].numpy(), tensors["scale"].numpy()
        return ensemble

    @property
    def digest(self) -> str:
        """Return what tells the members, their scaling and how they are combined from others."""
        parts = [member.digest for member in fitted(self.members_, "ensemble")]
        scaling = self.mean_.tobytes() + self.scale_.tobytes()
        return hashlib.sha256(repr((parts, self.rule, self.kappa)).encode() + scaling).hexdigest()[:16]

    def _own(self) -> dict[str, Any]:
        """Return the options of the ensemble itself."""
        return {name: getattr(self, name) for name in _OWN if name != "head"}

    def _targets(self, y: Any, groups: ArrayLike | None) -> tuple[list[Any], list[ArrayLike | None]]:
        """Return each member's pairs or labels, and their groups."""
        if not self.bootstrap:
            return [y] * self.n_members, [groups] * self.n_members
        found = y.pairs if isinstance(y, Split) and y.pairs is not None else target_array(y)
        if found.ndim != 2:
            raise UserError("bootstrap members draw pairs and were given labels: give pairs (n, 2)")
        owner = np.arange(len(found)) if groups is None else np.unique(groups, return_inverse=True)[1]
        drawn = [_resample(owner, seed) for seed in range(self.seed, self.seed + self.n_members)]
        # What was drawn twice stays on one side of a member's split, because its group is its owner.
        if isinstance(y, Split):
            return [split_of_pairs(found[rows], y.held_out) for rows in drawn], [None] * self.n_members
        return [found[rows] for rows in drawn], [owner[rows] for rows in drawn]

    def _standardise(self, X: Embeddings, y: Any, groups: ArrayLike | None) -> None:
        """Learn the mean and deviation of each member's scores on training rows."""
        rows = np.unique(split_targets(y, groups, 0.05, self.seed).rows)
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), STANDARD_ROWS)).astype(np.int64)]
        scores = self._raw(RowReader(X, int(rows[0]))(rows))
        deviation = scores.std(1)
        self.mean_, self.scale_ = scores.mean(1), np.where(deviation > 0, deviation, 1).astype(np.float32)

    def _raw(self, X: ArrayLike) -> Scores:
        return np.stack([member.predict(X) for member in fitted(self.members_, "ensemble")])


def _resample(owner: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return pair numbers of groups drawn with replacement, as many groups as there are."""
    order = np.argsort(owner, kind="stable")
    members: Sequence[NDArray[np.int64]] = np.split(order, np.bincount(owner).cumsum()[:-1])
    chosen = np.random.default_rng((seed, 3)).integers(len(members), size=len(members))
    return np.concatenate([members[group] for group in chosen])
