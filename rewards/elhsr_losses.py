"""The losses a probe's scores can be trained with: pure functions of scores, labels and prompts.

Sources: ELHSR / SWIFT (arXiv 2505.12225) for the choice; Bradley and Terry 1952 for `dpo`; noise contrastive
alignment (arXiv 2402.05369) for `infonca` and `nca`. Every function takes scores (M,) float, labels (M,),
1 for good and 0 for bad, and groups (M,) int64, which prompt a completion belongs to, and returns a scalar.
Groups need not stand together, may differ in size and have any numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

from decoder.contracts import UserError

ALPHA = 0.01  # temperature of the labels in infonca and nca

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ce(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return the binary cross-entropy of sigma(R), the mean over completions; labels in [0, 1]."""
    return binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))


def hinge(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of max(0, 1 - s R), where s is 1 for labels of at least 0.5 and -1 for others."""
    sign = torch.where(labels >= 0.5, 1.0, -1.0).to(scores.dtype)
    return (1 - sign * scores).clamp(min=0).mean()


def dpo(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return the mean of -log sigma(R+ - R-) over all pairs of a good and a bad completion of one prompt.

    Good ones have labels of at least 0.5. 0 where there is no pair.
    """
    good, bad = good_bad_pairs(labels, groups)
    if not len(good):
        return scores.sum() * 0  # a zero that can be differentiated
    return softplus(scores[bad] - scores[good]).mean()


def infonca(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return -sum_i softmax(label / alpha)_i log softmax(R)_i over each prompt, the mean over prompts."""
    member, size = _numbered(groups)
    wanted = _log_softmax(labels.to(scores.dtype) / ALPHA, member, len(size)).exp()
    return -(wanted * _log_softmax(scores, member, len(size))).sum() / len(size)


def nca(scores: Tensor, labels: Tensor, groups: Tensor) -> Tensor:
    """Return -sum_i [softmax(label / alpha)_i log sigma(R_i) + log sigma(-R_i) / K], the mean over prompts.

    K is the number of completions of the prompt.
    """
    member, size = _numbered(groups)
    wanted = _log_softmax(labels.to(scores.dtype) / ALPHA, member, len(size)).exp()
    return -(wanted * logsigmoid(scores) + logsigmoid(-scores) / size[member]).sum() / len(size)


LOSSES: dict[str, Loss] = {"ce": ce, "hinge": hinge, "dpo": dpo, "infonca": infonca, "nca": nca}


def loss(name: str) -> Loss:
    """Return the loss of that name. Raises UserError with the names there are."""
    if name not in LOSSES:
        raise UserError(f"there is no loss {name!r}: choose one of {', '.join(LOSSES)}")
    return LOSSES[name]


def good_bad_pairs(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers (n,) int64 of the good and the bad completion of every pair within a group.

    As many rows as there are pairs, so that one large group costs the others nothing.
    """
    member, size = _numbered(groups)
    is_good = labels >= 0.5
    good, bad = is_good.nonzero()[:, 0], (~is_good).nonzero()[:, 0]
    bad = bad[member[bad].argsort(stable=True)]  # group after group
    n_bad = torch.bincount(member[bad], minlength=len(size))
    partners = n_bad[member[good]]  # how many pairs each good one is in
    first_pair = partners.cumsum(0) - partners
    nth = torch.arange(int(partners.sum()), device=labels.device) - first_pair.repeat_interleave(partners)
    first_bad = (n_bad.cumsum(0) - n_bad)[member[good]]
    return good.repeat_interleave(partners), bad[first_bad.repeat_interleave(partners) + nth]


def _numbered(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the group of each completion as a number from 0, (M,) int64, and the groups' sizes (G,)."""
    _, member, size = groups.unique(return_inverse=True, return_counts=True)
    return member, size


def _log_softmax(values: Tensor, member: Tensor, n_groups: int) -> Tensor:
    """Return log softmax over the members of each group, (M,)."""
    shift = values.new_full((n_groups,), -torch.inf).scatter_reduce(0, member, values.detach(), "amax")
    shifted = values - shift[member]
    total = torch.zeros_like(shift).index_add(0, member, shifted.exp())
    return shifted - total.log()[member]
