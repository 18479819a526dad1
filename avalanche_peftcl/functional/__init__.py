"""Pure functions of tensors; they need torch and nothing else."""

from avalanche_peftcl.functional.accuracy_matrix import (
    accuracy_curve,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    clipped_forgetting,
    final_row,
    forgetting,
    forgetting_by_experience,
    forward_transfer,
    last_accuracy,
    learning_accuracy,
)
from avalanche_peftcl.functional.averaging import released_copy, running_mean_, segment
from avalanche_peftcl.functional.drift import (
    gaussian_kernel_drift,
    linear_drift,
    nearest_neighbour_drift,
    smoothed_ridge_drift,
)
from avalanche_peftcl.functional.finite import (
    all_finite,
    check_decided,
    check_finite,
    not_finite,
    undecided,
)
from avalanche_peftcl.functional.losses import (
    less_margin,
    pooled_nce,
    released_direction,
    released_orthogonality,
    span_energy,
)
from avalanche_peftcl.functional.matrix_vectors import (
    MatrixVectors,
    fold_row,
    matrix_vectors,
    mean,
    seen_accuracy,
)
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.functional.ratio_directions import complement, ratio_directions
from avalanche_peftcl.functional.released_projection import (
    coordinate_basis,
    released_mask,
    released_spectrum,
)
from avalanche_peftcl.functional.subspace import (
    extend_basis,
    extend_centred_basis,
    gram,
    orthonormal_basis,
    remove_component,
    stack_bases,
)

__all__ = [
    "MatrixVectors",
    "accuracy_curve",
    "all_finite",
    "average_accuracy",
    "average_incremental_accuracy",
    "backward_transfer",
    "check_decided",
    "check_finite",
    "clipped_forgetting",
    "complement",
    "coordinate_basis",
    "extend_basis",
    "extend_centred_basis",
    "final_row",
    "fold_row",
    "forgetting",
    "forgetting_by_experience",
    "forward_transfer",
    "gaussian_kernel_drift",
    "gram",
    "in_double",
    "last_accuracy",
    "learning_accuracy",
    "less_margin",
    "linear_drift",
    "matrix_vectors",
    "mean",
    "nearest_neighbour_drift",
    "not_finite",
    "orthonormal_basis",
    "pooled_nce",
    "ratio_directions",
    "released_copy",
    "released_direction",
    "released_mask",
    "released_orthogonality",
    "released_spectrum",
    "remove_component",
    "running_mean_",
    "seen_accuracy",
    "segment",
    "smoothed_ridge_drift",
    "span_energy",
    "stack_bases",
    "undecided",
]
