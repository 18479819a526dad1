"""Tests that a plain run leaves out, since others there say the same of something alike.

They are long, or their sum is: a plain ``pytest`` has five minutes. ``-m slow`` runs them.
"""

import re

_PATTERNS = r"""
tests/models/modules/test_full\.py::TestLaterBlocks::
tests/sweeps/test_tune\.py::test_(a_trial_that_breaks|joint_training)
tests/test_guides\.py::test_python_(runs\[(README\.md:57|examples/)|example_runs)
tests/test_guest\.py::test_it_shows_in_summary
tests/test_gpu_check\.py::test_every_cell
tests/test_logging\.py::test_(nothing_else_changes|a_run_that_replaces)
tests/checkpoints/test_host_strategies\.py::test_the_head_grows.*\[(SynapticIntelligence|AGEM|MAS|LwF)
tests/checkpoints/test_every_state\.py::test_what_goes_on.*\[(ntk_cl released|drift|lwf)
tests/checkpoints/test_every_state\.py::test_what_goes_on.*\[(retention|replay)
tests/checkpoints/test_every_state\.py::test_what_goes_on.*\[pegp (online|ratio|watched|released)
tests/runs/test_resume\.py::test_stopped_between.*\[ntk_cl-kernel
tests/runs/test_resume\.py::test_whatever_remembers.*\[(pieces|adamw)
tests/runs/test_resume\.py::test_(with_overwrite.*\[_|a_spoilt_record.*complete)
tests/runs/test_floors\.py::test_they_are_run_once
tests/runs/test_joint_run\.py::test_(stopped.*online|it_stands)
tests/compare/test_further\.py::test_its_values_are_kept
tests/compare/test_fuzz\.py::test_there_is_no_traceback
tests/benchmarks/test_avalanche\.py::test_strategies.*\[(replay-(domain|online|task)|lwf|ewc-class)
tests/testing/test_strategy_contracts\.py::Test(NTKCL|KernelNTKCL|PEGP|Naive)::test_trains.*\[(domain|task)
tests/testing/test_strategy_contracts\.py::Test(NTKCL::test_trains.*\[online|KernelNTKCL::test_same)
tests/testing/test_plugin_contracts\.py::Test(Ratio|SoftCentred|Watched|Released|Centred)Projection::
tests/testing/test_plugin_contracts\.py::TestGradientProjectionOfTheGradient::
tests/testing/test_plugin_contracts\.py::(?!TestWandB).*::test_(same_seed|does_not_change)
tests/checkpoints/test_every_state\.py::test_without_a_name
tests/export/test_fitted_heads\.py::test_a_stopped_run.*(gaussian|kernel_ridge|random_ridge)
tests/testing/test_strategy_violators\.py::test_noticed\[test_(no_task|state_dict|exported|prediction)
tests/registry/test_ranges\.py::test_extreme_values.*\[(strategy-naive|backbone-timm|benchmark-)
plugins/peftcl-prompts/tests/test_contracts\.py::.*::test_same_seed
tests/testing/test_strategy_violators\.py::test_noticed\[test_(learns-Trains|optimizer|backbone_is|uses)
tests/training/test_strangers\.py::TestL2P::
tests/training/test_strangers\.py::test_it_learns.*\[task
tests/training/test_validation\.py::test_classes_in_training.*-(task|domain)\]
tests/training/test_validation\.py::test_training_does_not_notice_it\[(released|corrected|pegp)-epoch
tests/training/test_validation\.py::test_a_plugin_that_reads.*\[released
tests/training/test_ntk_cl\.py::test_(several_copies\[3|every_scenario_is_learned\[.*-released)
tests/training/test_training_metrics\.py::test_accuracy_and_loss.*\[released
tests/training/test_pegp_stages\.py::test_both_stages.*\[(lora-0|prefix|adapter)
tests/training/plugins/test_drift_of_heads\.py::test_(a_head.*knows|inside).*\[(lda|gaussian)
tests/evaluation/test_any_time\.py::test_training_does_not_notice_it\[(pegp-task|naive_ridge-online)
tests/registry/test_ranges\.py::test_extreme_values.*\[strategy-(pegp|ntk_cl)
tests/checkpoints/test_script\.py::test_a_script.*\[(pegp domain|ntk_cl\]|host cumulative)
plugins/peftcl-adapters/tests/test_runs\.py::test_(it_runs.*\[(task|domain|online)|a_run.*\[ease)
tests/export/test_write\.py::test_an_export.*-(pegp_lora|ntk_cl_released|patch_prompt|pissa|dora)\]
tests/export/test_write\.py::test_an_export.*-(bfloat16|joint|prompt)\]
tests/runs/test_resume\.py::test_whatever_remembers.*\[replay-online
tests/checkpoints/test_script\.py::test_a_script.*\[ntk_cl online
tests/benchmarks/test_avalanche\.py::test_strategies.*\[naive-(domain|task|online)
tests/testing/test_strategy_contracts\.py::Test(NTKCL|KernelNTKCL|PEGP)::test_learns.*\[(domain|task|online)
tests/training/test_validation\.py::test_training_does_not_notice_it\[(pegp|released)-iteration
tests/runs/test_class_order_run\.py::test_the_record_says.*\[easiest
plugins/peftcl-adapters/tests/test_contracts\.py::Test(APER|RanPAC.*)::test_trains.*\[(domain|task|online)
"""
PATTERNS = [re.compile(pattern) for pattern in _PATTERNS.split("\n") if pattern]


def said_twice(nodeid: str) -> bool:
    """Return whether a test is left out of a plain run."""
    return any(pattern.match(nodeid) for pattern in PATTERNS)
