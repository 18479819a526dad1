"""Every part built in keeps the contracts that are shipped to method authors.

Those of attention adapters, LoRA, prefixes, prompts and tuners stand in tests/models/modules.
"""

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.benchmarks.sources.digits import digits
from avalanche_peftcl.models.backbones.glyph import vit_glyph
from avalanche_peftcl.models.branch import build_frozen
from avalanche_peftcl.models.heads.cosine import build_cosine
from avalanche_peftcl.models.heads.gaussian import build_gaussian
from avalanche_peftcl.models.heads.kernel_ridge import build_kernel_ridge
from avalanche_peftcl.models.heads.lda import build_lda
from avalanche_peftcl.models.heads.linear import build_linear
from avalanche_peftcl.models.heads.prototypes import build_prototypes
from avalanche_peftcl.models.heads.random_ridge import build_random_ridge
from avalanche_peftcl.models.heads.ridge import build_ridge
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.models.modules.patch_prompt import build_patch_prompts
from avalanche_peftcl.models.modules.peft_tuner import build_peft_tuner
from avalanche_peftcl.testing import (
    BackboneContract,
    BenchmarkContract,
    BranchContract,
    HeadContract,
    blind_backbone,
    toy_backbone,
    toy_images,
)


class TestToyBackbone(BackboneContract):
    def create_backbone(self):
        return toy_backbone()


class TestBlindBackbone(BackboneContract):
    def create_backbone(self):
        return blind_backbone()


class TestGlyph(BackboneContract):
    def create_backbone(self):
        return vit_glyph()


class TestAdapters(BranchContract):
    def create_branch(self, backbone):
        return build_adapters(backbone=backbone)


class TestTuner(BranchContract):
    def create_branch(self, backbone):
        return build_peft_tuner(backbone=backbone, tuner="loha", r=2)


class TestFrozen(BranchContract):
    def create_branch(self, backbone):
        return build_frozen(backbone=backbone)


class TestPatchPrompts(BranchContract):
    identity_at_start = False
    # prompts of the last block come after the last attention; LN takes the mean of b away
    dead_parameters = tuple(
        f"prompts.2.{name}" for name in ("mix.weight", "mix.bias", "norm.weight", "norm.bias")
    )

    def create_branch(self, backbone):
        return build_patch_prompts(backbone=backbone, length=4)


class TestLinear(HeadContract):
    def create_head(self, in_features):
        return build_linear(in_features=in_features)


class TestCosine(HeadContract):
    def create_head(self, in_features):
        return build_cosine(in_features=in_features)


class TestPrototypes(HeadContract):
    def create_head(self, in_features):
        return build_prototypes(in_features=in_features)


class TestLDA(HeadContract):
    def create_head(self, in_features):
        return build_lda(in_features=in_features)


class TestGaussian(HeadContract):
    def create_head(self, in_features):
        return build_gaussian(in_features=in_features)


class TestRidge(HeadContract):
    def create_head(self, in_features):
        return build_ridge(in_features=in_features)


class TestRidgeScaleFree(HeadContract):
    def create_head(self, in_features):
        return build_ridge(in_features=in_features, penalty="scale_free", penalty_factor=2.0)


class TestRandomRidge(HeadContract):
    def create_head(self, in_features):
        return build_random_ridge(in_features=in_features, n_features=40)


class TestKernelRidge(HeadContract):
    def create_head(self, in_features):
        return build_kernel_ridge(in_features=in_features, n_features=100, bandwidth=5.0)


class TestKernelRidgeOfAChosenBandwidth(HeadContract):
    def create_head(self, in_features):
        return build_kernel_ridge(in_features=in_features, n_features=100)


class TestExactKernelRidge(HeadContract):
    def create_head(self, in_features):
        return build_kernel_ridge(in_features=in_features, exact=True)


class TestPrototypesBySections(HeadContract):
    def create_head(self, in_features):
        return build_prototypes(in_features=in_features, section_weights=(1.0, 0.3))


class TestClassStream(BenchmarkContract):
    scenario = "class"

    def create_benchmark(self, input_config, *, seed):
        options = {"n_experiences": 3}
        if self.scenario == "domain":
            options = {"train_domains": [0, 1, 2] * 12, "test_domains": [0, 1, 2] * 12}
        return make_benchmark(
            toy_images(),
            toy_images(seed=1),
            input_config=input_config,
            scenario=self.scenario,
            seed=seed,
            **options,
        )


class TestTaskStream(TestClassStream):
    scenario = "task"


class TestDomainStream(TestClassStream):
    scenario = "domain"


class TestOnlineStream(TestClassStream):
    scenario = "online"


class TestDigits(BenchmarkContract):
    def create_benchmark(self, input_config, *, seed):
        return digits(input_config=input_config, seed=seed, n_experiences=5)


class TestDigitsTask(BenchmarkContract):
    def create_benchmark(self, input_config, *, seed):
        return digits(input_config=input_config, seed=seed, n_experiences=5, scenario="task")
