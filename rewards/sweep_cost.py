"""What a cell of a sweep will roughly take, by arithmetic: nothing is measured."""

from __future__ import annotations

from itertools import pairwise

from rewards.heads import HEADS, LightgbmOptions, MlpOptions
from rewards.sweep_grid import Cell, Grid

# Measured in processor seconds on one core of a server with AVX-512; a busy machine takes longer.
OPERATIONS = 80e9  # multiplications and additions a second, in the products of an MLP
STEP = 0.5e-3  # seconds a step that do not depend on its size
LEAF, ROW = 2.0e-6, 6.6e-9  # seconds a tree and dimension, for each leaf and each row
FEWEST_STEPS = 400  # as `rewards.fit_stacked` has it
EPOCHS_USED = 0.5  # of those allowed: most fits stop early
TREES_USED = 0.8


def estimated_seconds(grid: Grid, cell: Cell, dimension: int) -> float:
    """Return the processor seconds of the cell on embeddings of this dimension, right to a factor of two."""
    recipe, chosen = HEADS[cell.head], grid.options.get(cell.head, {})
    if "lightgbm" in recipe.made_by:
        boosted = LightgbmOptions(**{**recipe.options, **chosen})
        tree = dimension * (LEAF * boosted.leaves + ROW * 2 * cell.n_pairs)
        return TREES_USED * boosted.trees * tree
    options = MlpOptions(**{**recipe.options, **chosen})
    weights = sum(wide * out for wide, out in pairwise([dimension, *options.widths, 1]))
    steps = EPOCHS_USED * max(FEWEST_STEPS, options.epochs * cell.n_pairs / options.batch_pairs)
    return steps * (STEP + 6 * weights * 2 * options.batch_pairs / OPERATIONS)
