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
from avalanche_peftcl.functional.any_time import (
    any_time_area,
    average_minimum_accuracy,
    minimum_since_learned,
    worst_case_accuracy,
)
from avalanche_peftcl.functional.averaging import released_copy, running_mean_, segment
from avalanche_peftcl.functional.drift import (
    gaussian_kernel_drift,
    linear_drift,
    nearest_neighbour_drift,
    smoothed_ridge_drift,
)
from avalanche_peftcl.functional.feature_replay import covariance_factor, normalised_logits
from avalanche_peftcl.functional.finite import (
    all_finite,
    check_decided,
    check_finite,
    not_finite,
    undecided,
)
from avalanche_peftcl.functional.gaussians import (
    centred_fourth_moment,
    ledoit_wolf_shrinkage,
    oas_shrinkage,
    shrink,
    within_scatter,
)
from avalanche_peftcl.functional.kernels import (
    fourier_features,
    gaussian_kernel,
    median_distance,
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
from avalanche_peftcl.functional.movement import relative_movement
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.functional.ratio_directions import complement, ratio_directions
from avalanche_peftcl.functional.released_projection import (
    coordinate_basis,
    released_mask,
    released_spectrum,
)
from avalanche_peftcl.functional.ridge import (
    Spectrum,
    generalised_cross_validation,
    kernel_spectrum,
    penalties,
    scale_free_cross_validation,
    spectrum,
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
    "Spectrum",
    "accuracy_curve",
    "all_finite",
    "any_time_area",
    "average_accuracy",
    "average_incremental_accuracy",
    "average_minimum_accuracy",
    "backward_transfer",
    "centred_fourth_moment",
    "check_decided",
    "check_finite",
    "clipped_forgetting",
    "complement",
    "coordinate_basis",
    "covariance_factor",
    "extend_basis",
    "extend_centred_basis",
    "final_row",
    "fold_row",
    "forgetting",
    "forgetting_by_experience",
    "forward_transfer",
    "fourier_features",
    "gaussian_kernel",
    "gaussian_kernel_drift",
    "generalised_cross_validation",
    "gram",
    "in_double",
    "kernel_spectrum",
    "last_accuracy",
    "learning_accuracy",
    "ledoit_wolf_shrinkage",
    "less_margin",
    "linear_drift",
    "matrix_vectors",
    "mean",
    "median_distance",
    "minimum_since_learned",
    "nearest_neighbour_drift",
    "normalised_logits",
    "not_finite",
    "oas_shrinkage",
    "orthonormal_basis",
    "penalties",
    "pooled_nce",
    "ratio_directions",
    "relative_movement",
    "released_copy",
    "released_direction",
    "released_mask",
    "released_orthogonality",
    "released_spectrum",
    "remove_component",
    "running_mean_",
    "scale_free_cross_validation",
    "seen_accuracy",
    "segment",
    "shrink",
    "smoothed_ridge_drift",
    "span_energy",
    "spectrum",
    "stack_bases",
    "undecided",
    "within_scatter",
    "worst_case_accuracy",
]
