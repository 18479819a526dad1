import copy
import inspect

import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Branch,
    BuildSpec,
    NTKCLModel,
    PEFTModel,
    PrototypeHead,
    export_spec,
)
from avalanche_peftcl.models.exportable import is_exportable
from avalanche_peftcl.models.heads.prototypes import build_prototypes
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.peft_tuner import build_peft_tuner


def test_a_builder_keeps_its_signature_and_what_it_made_remembers_every_option(backbone):
    branch = build_lora(backbone=backbone, r=2, blocks=[1])
    assert list(inspect.signature(build_lora).parameters)[:2] == ["backbone", "r"]
    spec = export_spec(branch)
    assert spec.build == "avalanche_peftcl.models.modules.lora:build_lora"
    assert spec.options["r"] == 2
    assert spec.options["init"] == "kaiming"  # a default of today, kept for tomorrow
    assert spec.to_json()["options"]["target_modules"] == ["qkv"]
    assert "backbone" not in spec.options


def test_further_options_are_options(backbone):
    branch = build_peft_tuner(backbone=backbone, tuner="lora", use_dora=True)
    assert export_spec(branch).options["use_dora"] is True
    assert "options" not in export_spec(branch).options


def test_a_network_among_the_options_stands_as_its_own_builder(backbone):
    model = PEFTModel(backbone, build_lora(backbone=backbone))
    told = export_spec(model).to_json()
    assert told["build"] == "avalanche_peftcl.models.networks.tuned:PEFTModel"
    assert told["options"]["branch"]["build"] == "avalanche_peftcl.models.modules.lora:build_lora"


def test_it_costs_neither_copies_nor_the_state_dict(backbone):
    model = NTKCLModel(backbone, r=3)
    assert export_spec(copy.deepcopy(model)) == export_spec(model)
    assert not any("export" in name for name in model.state_dict())


def test_a_subclass_is_built_otherwise(backbone):
    class Wider(NTKCLModel):
        def __init__(self, backbone, factor):
            super().__init__(backbone, r=4 * factor)

    assert is_exportable(NTKCLModel)
    assert not is_exportable(Wider)
    with pytest.raises(ConfigError, match="a Wider does not say how it is built again"):
        export_spec(Wider(backbone, 2))


def test_a_part_that_does_not_say_how_it_is_built_is_named(backbone):
    with pytest.raises(ConfigError, match="PEFTModel was given as branch a Branch that does not"):
        export_spec(PEFTModel(backbone, Branch()))


def test_options_that_no_file_holds_are_named():
    for value in (torch.zeros(1), float("nan"), object(), [1, {2: {3}}]):
        with pytest.raises(ConfigError, match=r"p:build was given as x a .*, which no file"):
            BuildSpec("p:build", {"x": value}).to_json()
    plain = {"a": None, "b": [1, 2.5, "c", True], "d": {"e": (1,)}}
    assert BuildSpec("p:b", plain).to_json()["options"] == plain | {"d": {"e": [1]}}


def test_a_part_needs_no_backbone_and_a_builder_among_the_options_stands_as_what_it_built(backbone):
    head = build_prototypes(in_features=64, section_weights=(0.3, 0.1))
    assert export_spec(head).options == {"in_features": 64, "section_weights": (0.3, 0.1)}
    model = NTKCLModel(backbone, head=lambda width: build_prototypes(in_features=width))
    told = export_spec(model).to_json()["options"]["head"]
    assert told["build"] == "avalanche_peftcl.models.heads.prototypes:build_prototypes"
    assert told["options"]["in_features"] == model.embed_dim
    assert export_spec(PrototypeHead(8)).options == {"in_features": 8, "section_weights": (1.0,)}
    with pytest.raises(ConfigError, match="given as head a ShutHead that does not say how"):
        export_spec(NTKCLModel(backbone, head=ShutHead))


class ShutHead(PrototypeHead):
    """A head that does not say how it is built."""
