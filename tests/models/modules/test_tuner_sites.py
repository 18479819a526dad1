import peft
import pytest
import torch
from torch import nn

from avalanche_peftcl.models import (
    PEFTModel,
    build_lora,
    build_peft_tuner,
    forward_branches,
    projection_sites,
)

ADALORA = {"tuner": "adalora", "init_r": 3, "total_step": 10}
DORA = {"tuner": "lora", "r": 3, "use_dora": True}
IA3 = {"tuner": "ia3", "target_modules": ("qkv", "fc2"), "feedforward_modules": ["fc2"]}


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(3, 3, 16, 16)


def features_at(sites, run):
    """Return by site's name the feature rows, ``(n, G * D)``, of what ``run`` does."""
    seen = {site.name: [] for site in sites}

    def hook(site):
        return lambda module, args: seen[site.name].append(site.features(args[0]).flatten(0, -2))

    handles = [site.place.register_forward_pre_hook(hook(site)) for site in sites]
    run()
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items()}


@torch.no_grad()
def move_away_from(sites, features):
    """Move every parameter at random, but not along the features; return the free dimensions."""
    free = {}
    for site in sites:
        view = site.view(site.parameter)  # (G, R, D)
        rows = features[site.name].unflatten(1, (len(view), -1)).transpose(0, 1)  # (G, n, D)
        step, free[site.name] = torch.randn_like(view), 0
        for group, x in zip(step, rows, strict=True):
            _, s, v = torch.linalg.svd(x, full_matrices=False)
            basis = v[s > 1e-9 * s.max()].T if s.max() > 0 else v[:0].T
            group -= group @ basis @ basis.T
            free[site.name] += group.shape[1] - basis.shape[1]
        view += step
    return free


def build_tuned(backbone, options):
    if options["tuner"] == "build_lora":
        return build_lora(backbone=backbone, r=16)
    return build_peft_tuner(backbone=backbone, **options)


@pytest.mark.parametrize(
    ("options", "kinds", "free"),
    [
        ({"tuner": "build_lora"}, {"lora_A", "lora_B", "scaling"}, {"lora_A", "lora_B"}),
        (ADALORA | {"init_r": 16}, {"lora_A", "lora_E", "lora_B"}, {"lora_A", "lora_B"}),
        (
            {"tuner": "lora", "use_rslora": True, "r": 16},
            {"lora_A", "lora_B"},
            {"lora_A", "lora_B"},
        ),
        ({"tuner": "lora", "bias": "lora_only"}, {"lora_A", "lora_B", "base_layer"}, {"lora_A"}),
        (IA3, {"ia3_l"}, set()),
    ],
    ids=["lora", "adalora", "rslora", "bias", "ia3"],
)
def test_old_features_stay_where_parameters_keep_off_old_rows(make_backbone, options, kinds, free):
    """Ten old rows in 64 dimensions: there is room to learn, and old outputs do not move."""
    torch.manual_seed(0)
    backbone = make_backbone(img_size=8, embed_dim=64, num_heads=2).double()
    model = PEFTModel(backbone, build_tuned(backbone, options)).eval()
    with torch.no_grad():
        for p in model.branch.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    old_images, new_images = torch.randn(2, 2, 3, 8, 8, dtype=torch.double)
    old, new = model.embed(old_images), model.embed(new_images)
    sites = projection_sites(model)
    assert {site.name.split(".")[3] for site in sites} == kinds
    assert not model.branch.unprotected()
    room = move_away_from(sites, features_at(sites, lambda: model.embed(old_images)))
    assert {name.split(".")[3] for name, size in room.items() if size} >= free
    assert not any(room[s.name] for s in sites if "lora_E" in s.name or "ia3_l" in s.name)
    torch.testing.assert_close(model.embed(old_images), old, atol=1e-8, rtol=1e-8)
    if free:
        assert (model.embed(new_images) - new).abs().max() > 1e-2


def test_sites_name_parameters_of_the_model(backbone):
    model = nn.Sequential(build_peft_tuner(backbone=backbone, **ADALORA))
    parameters = dict(model.named_parameters())
    sites = projection_sites(model)
    assert len(sites) == 9
    assert all(parameters[site.name] is site.parameter for site in sites)
    model[0].tuners["blocks_1_attn_qkv"].requires_grad_(False)
    assert len(projection_sites(model)) == 6


def test_dora_has_sites_and_unprotected_magnitudes(backbone, images):
    """DoRA passes an identity matrix through A and B; the sites must not hear it."""
    branch = build_peft_tuner(backbone=backbone, **DORA).eval()
    sites = list(branch.projection_sites())
    names = [f"tuners.blocks_{i}_attn_qkv" for i in range(3)]
    assert [s.name for s in sites] == [
        f"{name}.lora_{part}.default.weight" for name in names for part in "AB"
    ]
    assert branch.unprotected() == [f"{n}.lora_magnitude_vector.default.weight" for n in names]
    features = features_at(sites, lambda: forward_branches(backbone, [branch], images))
    assert {tuple(rows.shape) for rows in features.values()} == {(3 * 17, 32), (3 * 17, 3)}
    down = branch.tuners["blocks_0_attn_qkv"]["lora_A"]["default"].weight
    torch.testing.assert_close(features[sites[1].name], features[sites[0].name] @ down.T)


@pytest.mark.parametrize(
    "options",
    [
        {"tuner": "loha"},
        {"tuner": "peanut"},  # its linear layers are never called on tokens
        {"tuner": "lora", "use_bdlora": {"target_modules_bd_a": ["qkv"], "nblocks": 2}},
    ],
    ids=["loha", "peanut", "bdlora"],
)
def test_of_tuners_without_a_rule_all_is_unprotected(backbone, images, options):
    if options["tuner"] == "lora":
        options = {**options, "use_bdlora": peft.tuners.lora.BdLoraConfig(**options["use_bdlora"])}
    branch = build_peft_tuner(backbone=backbone, **options)
    sites = list(branch.projection_sites())
    features_at(
        sites, lambda: forward_branches(backbone, [branch], images)
    )  # every site hears features
    trained = [name for name, p in branch.named_parameters() if p.requires_grad]
    assert branch.unprotected() == trained
