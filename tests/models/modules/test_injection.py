import copy

import peft
import pytest
import torch
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.models.modules.injection import TunedBranch, view_of
from avalanche_peftcl.models.modules.layer_names import layer_names
from avalanche_peftcl.models.modules.peft_tuner import build_peft_tuner
from avalanche_peftcl.testing import BranchContract

ADALORA = {"tuner": "adalora", "init_r": 3, "total_step": 10}
DORA = {"tuner": "lora", "r": 3, "use_dora": True}
IA3 = {"tuner": "ia3", "target_modules": ("qkv", "fc2"), "feedforward_modules": ["fc2"]}
PISSA = {"tuner": "lora", "r": 3, "init_lora_weights": "pissa"}


class TestDoRA(BranchContract):
    def create_branch(self, backbone):
        return build_peft_tuner(backbone=backbone, **DORA)


class TestAdaLoRA(BranchContract):
    dead_parameters = ("ranknum.default",)

    def create_branch(self, backbone):
        return build_peft_tuner(backbone=backbone, **ADALORA)


class TestIA3(BranchContract):
    def create_branch(self, backbone):
        return build_peft_tuner(backbone=backbone, **IA3)


class TestPiSSA(BranchContract):
    dead_parameters = ("base_layer.weight", "base_layer.bias")

    def create_branch(self, backbone):
        return build_peft_tuner(backbone=backbone, **PISSA)


class Model(nn.Module):
    """What holds a backbone and a branch: the place where both are moved and copied."""

    def __init__(self, backbone, branch):
        super().__init__()
        self.backbone, self.branch = backbone, branch

    def forward(self, images):
        return forward_branches(self.backbone, [self.branch], images)[0]


def shake(branch, scale=0.1):
    with torch.no_grad():
        for p in branch.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn_like(p))


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(3, 3, 16, 16)


def test_a_view_can_be_rebuilt_and_stays_in_step(backbone, images):
    expected = backbone(images)
    view = view_of(backbone, lambda vit: vit.register_module("head", nn.Dropout()))
    assert torch.equal(view(images), expected)
    assert not view.vit.head.training
    assert [id(p) for p in view.parameters()] == [id(p) for p in backbone.parameters()]
    view.blocks[0] = nn.Identity()
    assert torch.equal(backbone(images), expected)
    backbone.register_buffer("late", torch.zeros(1))  # a module of the view without buffers
    assert not dict(view.named_buffers())
    backbone.double()
    assert {p.dtype for p in view.parameters()} == {torch.double}
    backbone.load_state_dict({k: v + 1 for k, v in backbone.state_dict().items()}, assign=True)
    assert torch.equal(view.vit.pos_embed, backbone.vit.pos_embed)
    backbone.to("meta")  # parameters are replaced, not changed in place
    assert all(p.is_meta for p in view.parameters())


def test_a_view_shares_buffers_that_are_replaced(backbone):
    backbone.blocks[1].register_buffer("offset", torch.ones(2))
    view = view_of(backbone)
    backbone.double()
    assert view.blocks[1].offset is backbone.blocks[1].offset
    assert view.blocks[1].offset.dtype == torch.double


@pytest.mark.parametrize(
    "options",
    [
        {"tuner": "lora", "bias": "lora_only"},
        {"tuner": "lora", "init_lora_weights": "olora"},
        {"tuner": "LoHa"},
        {"tuner": "oft", "oft_block_size": 8},
        {"tuner": "ln_tuning", "target_modules": ("norm1",)},
        DORA,
        PISSA,
        ADALORA,
        IA3,
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_backbone_is_untouched_and_the_tuner_trains(backbone, images, options):
    before = copy.deepcopy(backbone.state_dict())
    features = backbone(images)
    model = Model(backbone, build_peft_tuner(backbone=backbone, **options)).train()
    start = model(images)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, wanted = torch.optim.Adam(trained, lr=0.01), torch.randn(3, 32)
    for _ in range(3):
        optimizer.zero_grad()
        (model(images) - wanted).square().mean().backward()
        optimizer.step()
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)
    assert torch.equal(backbone(images), features)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert (model(images) - start).abs().max() > 1e-4
    frozen = {id(p) for p in backbone.parameters()}
    assert not any(id(p) in frozen for p in model.branch.parameters())
    trained_in_view = {id(p) for p in model.branch.network(backbone).parameters()} - frozen
    assert trained_in_view == {id(p) for p in model.branch.parameters()}


def test_only_what_the_tuner_brought_is_in_the_branch(backbone):
    branch = build_peft_tuner(backbone=backbone, tuner="lora", r=2, blocks=[0, 2])
    assert {k: tuple(v.shape) for k, v in branch.state_dict().items()} == {
        f"tuners.blocks_{i}_attn_qkv.lora_{part}.default.weight": shape
        for i in (0, 2)
        for part, shape in (("A", (2, 32)), ("B", (96, 2)))
    }


def test_a_layer_that_the_initialisation_changes_belongs_to_the_branch(backbone, images):
    branch = build_peft_tuner(backbone=backbone, blocks=[1], **PISSA)
    residual = branch.tuners["blocks_1_attn_qkv"]["base_layer"]
    lora = branch.tuners["blocks_1_attn_qkv"]
    update = lora["lora_B"]["default"].weight @ lora["lora_A"]["default"].weight
    original = backbone.blocks[1].attn.qkv.weight
    assert (residual.weight - original).abs().max() > 1e-3
    scale = branch.network(backbone).blocks[1].attn.qkv.scaling["default"]
    torch.testing.assert_close(residual.weight + scale * update, original, atol=1e-5, rtol=0)
    assert not residual.weight.requires_grad
    torch.testing.assert_close(Model(backbone, branch)(images), backbone(images))


@pytest.mark.parametrize("options", [DORA, ADALORA, IA3, PISSA], ids=lambda o: o["tuner"])
def test_moves_and_copies_keep_the_sharing(backbone, images, options):
    model = Model(backbone, build_peft_tuner(backbone=backbone, **options)).eval()
    shake(model.branch)
    expected = model(images)
    model.double()
    torch.testing.assert_close(model(images.double()), expected.double(), atol=1e-4, rtol=1e-4)
    model.float()
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), expected)
    shake(twin.branch)
    assert (twin(images) - expected).abs().max() > 1e-3
    assert torch.equal(model(images), expected)
    twin.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
    assert torch.equal(twin(images), expected)
    twin.double()
    ours = {id(p) for p in twin.parameters()}
    assert {id(p) for p in twin.branch.network(twin.backbone).parameters()} <= ours


def test_what_a_tuner_keeps_in_the_layer_itself_belongs_to_the_branch(backbone, monkeypatch):
    """BOFT does so; it would compile an extension here."""
    inject = peft.inject_adapter_in_model

    def inject_more(config, vit):
        inject(config, vit).blocks[0].attn.qkv.register_buffer("permutation", torch.ones(2))

    monkeypatch.setattr(peft, "inject_adapter_in_model", inject_more)
    branch = build_peft_tuner(backbone=backbone, tuner="lora", blocks=[0]).double()
    assert next(iter(branch.state_dict())) == "tuners.blocks_0_attn_qkv.permutation"
    assert branch.network(backbone).blocks[0].attn.qkv.permutation.dtype == torch.double


@pytest.mark.parametrize("options", [DORA, {"tuner": "lora"}], ids=["dora", "lora"])
def test_dropout_follows_the_branch_and_the_frozen_layers_never_train(backbone, images, options):
    branch = build_peft_tuner(backbone=backbone, lora_dropout=0.5, **options)
    shake(branch)
    model = Model(backbone, branch)
    for mode in (False, True):
        model.train(mode)
        assert torch.equal(model(images), model(images)) is not mode
    vit = branch.network(backbone).vit
    assert not vit.blocks[0].attn.qkv.base_layer.training
    assert not vit.blocks[0].training


def test_features_are_those_of_a_plain_peft_model(backbone, images):
    options = {"r": 3, "use_rslora": True, "lora_alpha": 4}
    names = layer_names(backbone, ["attn.proj", "fc1"], [0, 1])
    branch = build_peft_tuner(
        backbone=backbone,
        tuner="lora",
        target_modules=("attn.proj", "fc1"),
        blocks=[0, 1],
        **options,
    ).eval()
    shake(branch)
    state = peft.get_peft_model_state_dict(branch.network(backbone).vit)
    assert len(state) == len(list(branch.parameters())) == 8
    config = peft.LoraConfig(target_modules=names, **options)
    plain = peft.get_peft_model(copy.deepcopy(backbone.vit), config)
    missing = peft.set_peft_model_state_dict(
        plain, {f"base_model.model.{k}": v for k, v in state.items()}
    )
    assert not missing.unexpected_keys
    expected = plain.eval()(images)
    assert (expected - backbone(images)).abs().max() > 1e-2
    torch.testing.assert_close(Model(backbone, branch)(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("modules", "blocks", "shares"),
    [
        (("qkv",), None, False),
        (("fc2",), [0], False),
        (("qkv",), [1], True),
        (("attn.proj", "fc1"), [1, 2], True),
    ],
)
def test_the_start_is_shared_where_the_first_block_is_not_tuned(
    backbone, images, modules, blocks, shares
):
    branch = build_peft_tuner(
        backbone=backbone, tuner="lora", target_modules=modules, blocks=blocks
    ).eval()
    shake(branch)
    assert branch.shares_start is shares
    expected = branch.network(backbone)(images)
    torch.testing.assert_close(Model(backbone, branch)(images), expected, atol=1e-5, rtol=1e-5)


def test_any_configuration_of_peft_and_the_final_norm(backbone, images):
    branch = TunedBranch(backbone, peft.LNTuningConfig(target_modules=r"norm|.*\.norm2")).eval()
    assert not branch.shares_start
    assert len(branch.tuners) == 4
    shake(branch)
    torch.testing.assert_close(Model(backbone, branch)(images), branch.network(backbone)(images))
    assert branch.unprotected() == [name for name, _ in branch.named_parameters()]


def test_many_layers_of_some_blocks_are_exactly_those(make_backbone):
    backbone = make_backbone(depth=12)
    blocks = [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    branch = build_peft_tuner(
        backbone=backbone, tuner="lora", r=1, target_modules=("qkv", "proj"), blocks=blocks
    )
    expected = {f"blocks.{i}.attn.{name}" for i in blocks for name in ("qkv", "proj")}
    assert {name for name, _ in branch.tuned_layers()} == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.LoraConfig(target_modules=["query"]), "query.*not found.*attn.qkv, attn.proj"),
        (peft.LoraConfig(target_modules=["proj"]), r"patch_embed.proj.*\(attn.proj instead"),
        (peft.PromptTuningConfig(num_virtual_tokens=2), "refuses PromptTuningConfig.*prompt"),
        (
            peft.LoraConfig(target_modules=["qkv"], modules_to_save=["norm"]),
            "LoraConfig sets modules_to_save, but here only whole layers are tuned; name them in",
        ),
    ],
)
def test_bad_configurations_are_config_errors_and_leave_the_backbone(backbone, config, message):
    before = list(backbone.state_dict())
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        TunedBranch(backbone, config)
    assert list(backbone.state_dict()) == before
    assert not any(p.requires_grad for p in backbone.parameters())
