"""Every kind of component has a contract, and every contract is shown to bite."""

from pathlib import Path

import pytest

import tests.evaluation.test_released as released
import tests.models.backbones.test_dual_encoder as dual_encoder
import tests.models.backbones.test_open_clip as open_clip
import tests.models.heads.test_text_context as text_context
import tests.models.heads.test_zero_shot as zero_shot
import tests.models.heads.test_zero_shot_ridge as zero_shot_ridge
import tests.models.modules.test_attention_adapter as attention_adapter
import tests.models.modules.test_full as full
import tests.models.modules.test_injection as injection
import tests.models.modules.test_linear_adapter as linear_adapter
import tests.models.modules.test_lora as lora
import tests.models.modules.test_prefix as prefix
import tests.models.modules.test_prompt as prompt
import tests.testing.test_contracts as parts
import tests.testing.test_plugin_contracts as watching
import tests.testing.test_strategy_contracts as methods
from avalanche_peftcl import testing
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.kinds import KINDS

CONTRACTS = {name for name in testing.__all__ if name.endswith("Contract")}
NAMES = {"module": "Branch", "strategy_plugin": "Plugin"}


def test_every_kind_has_a_contract():
    wanted = {f"{NAMES.get(kind, kind.capitalize())}Contract" for kind in KINDS}
    assert wanted == CONTRACTS


def test_every_contract_has_violators():
    there = {path.name for path in Path(__file__).parent.glob("test_*_violators.py")}
    assert there == {
        f"test_{name.removesuffix('Contract').lower()}_violators.py" for name in CONTRACTS
    }


# by kind and name, what holds a built-in component to the contract of its kind
KEPT = {
    "backbone": {
        "dual_encoder": dual_encoder.TestContract,
        "open_clip": open_clip.TestContract,
        "timm_vit": parts.TestToyBackbone,
        "vit_glyph": parts.TestGlyph,
    },
    "module": {
        "adapter": parts.TestAdapters,
        "attention_adapter": attention_adapter.TestAttentionAdapters,
        "frozen": parts.TestFrozen,
        "full": full.TestFull,
        "linear_adapter": linear_adapter.TestLinearAdapter,
        "lora": lora.TestLoRA,
        "patch_prompt": parts.TestPatchPrompts,
        "peft_tuner": injection.TestDoRA,
        "prefix": prefix.TestPrefix,
        "prompt": prompt.TestPrompt,
    },
    "head": {
        "cosine": parts.TestCosine,
        "gaussian": parts.TestGaussian,
        "kernel_ridge": parts.TestKernelRidge,
        "lda": parts.TestLDA,
        "linear": parts.TestLinear,
        "prototypes": parts.TestPrototypes,
        "random_ridge": parts.TestRandomRidge,
        "ridge": parts.TestRidge,
        "text_context": text_context.TestContract,
        "zero_shot": zero_shot.TestContract,
        "zero_shot_ridge": zero_shot_ridge.TestContract,
    },
    "strategy": {
        "closed_form": methods.TestClosedForm,
        "contrastive": methods.TestContrastive,
        "joint": methods.TestJoint,
        "naive": methods.TestNaive,
        "nearest_class_mean": methods.TestNearestClassMean,
        "ntk_cl": methods.TestNTKCL,
        "pegp": methods.TestPEGP,
    },
    "strategy_plugin": {
        "drift_compensation": watching.TestDriftCompensation,
        "ewc": watching.TestEWC,
        "feature_replay": watching.TestFeatureReplay,
        "gradient_projection": watching.TestGradientProjection,
        "lwf": watching.TestLwF,
        "margin": watching.TestMargin,
        "replay": watching.TestReplay,
        "retention": watching.TestRetention,
        "running_mean": watching.TestRunningMean,
    },
    "metric": {
        "accuracy": watching.TestAccuracy,
        "accuracy_matrix": watching.TestAccuracyMatrix,
        "any_time": watching.TestAnyTime,
        "cost": watching.TestCost,
        "loss": watching.TestLoss,
        "ntk": watching.TestNTK,
        "released_accuracy": released.TestContract,
        "retrieval": watching.TestRetrieval,
        "wrong_matches": watching.TestWrongMatches,
        "zero_shot_retention": watching.TestZeroShotRetention,
    },
    "logger": {"tensorboard": watching.TestTensorboard, "wandb": watching.TestWandB},
}


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"benchmark"}))
def test_everything_built_in_keeps_its_contract(kind):
    """What a record says is tested is; benchmarks all come from make_benchmark, which is tried."""
    built_in = {entry.component.name for entry in discover(only=["avalanche-peftcl"]).entries(kind)}
    assert built_in == KEPT[kind].keys()
    contract = getattr(testing, f"{NAMES.get(kind, kind.capitalize())}Contract")
    assert all(issubclass(kept, contract) for kept in KEPT[kind].values())
