"""Tables and sentences that present results in the terminal."""

from loopprobe.show.tables.ablate import ablate_table
from loopprobe.show.tables.algorithms import align_table, decode_table
from loopprobe.show.tables.common import lines_of, markdown, show_table
from loopprobe.show.tables.edges import edges_table
from loopprobe.show.tables.features import dictionaries_table, features_table
from loopprobe.show.tables.inside import (
    attention_table,
    attribute_table,
    exit_table,
    fixed_points_table,
    lens_table,
    limits_models_table,
    limits_table,
    patch_table,
    paths_table,
    recover_table,
)
from loopprobe.show.tables.inspection import diagram, inspection_tables
from loopprobe.show.tables.models import checkpoint_summary, checkpoint_table, checkpoint_tables, plan_table
from loopprobe.show.tables.steer import steer_table
from loopprobe.show.tables.study import (
    compare_table,
    converge_table,
    curves_table,
    folds_table,
    mask_models_table,
    mask_table,
    shift_table,
)
from loopprobe.show.tables.weights import weights_table

__all__ = [
    "ablate_table",
    "align_table",
    "attention_table",
    "attribute_table",
    "checkpoint_summary",
    "checkpoint_table",
    "checkpoint_tables",
    "compare_table",
    "converge_table",
    "curves_table",
    "decode_table",
    "diagram",
    "dictionaries_table",
    "edges_table",
    "exit_table",
    "features_table",
    "fixed_points_table",
    "folds_table",
    "inspection_tables",
    "lens_table",
    "limits_models_table",
    "limits_table",
    "lines_of",
    "markdown",
    "mask_models_table",
    "mask_table",
    "patch_table",
    "paths_table",
    "plan_table",
    "recover_table",
    "shift_table",
    "show_table",
    "steer_table",
    "weights_table",
]
