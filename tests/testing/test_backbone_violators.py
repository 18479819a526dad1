"""Backbones that break their contract, each in one way; the test of that name must notice."""

from types import MethodType, SimpleNamespace

import pytest
import torch

from avalanche_peftcl.testing import BackboneContract, toy_backbone, toy_image_text


class Honest(BackboneContract):
    def create_backbone(self):
        return toy_backbone()


def with_method(name, method):
    """Return an honest contract whose backbone has another method, handed its own as ``own``."""

    class Violator(Honest):
        def create_backbone(self):
            backbone = super().create_backbone()
            own = getattr(backbone, name)
            replaced = MethodType(lambda self, *args: method(self, own, *args), backbone)
            setattr(backbone, name, replaced)
            return backbone

    return Violator


class Trains(Honest):
    def create_backbone(self):
        return super().create_backbone().requires_grad_(True)


class Drops(Honest):
    """Goes into train mode where it is asked to."""

    def create_backbone(self):
        backbone = super().create_backbone()
        backbone.train = MethodType(torch.nn.Module.train, backbone)
        return backbone


class IsNarrower(Honest):
    def create_backbone(self):
        backbone = super().create_backbone()
        kind = type(backbone)
        backbone.__class__ = type("Narrow", (kind,), {"num_tokens": property(lambda self: 16)})
        return backbone


class DrawsItsWeights(Honest):
    def create_backbone(self):
        backbone = super().create_backbone()
        torch.nn.init.normal_(backbone.vit.cls_token)
        return backbone


class HasNoDeviation(Honest):
    def create_backbone(self):
        backbone = super().create_backbone()
        whole = {"img_size": 16, "mean": (0,) * 3, "std": (0,) * 3, "crop_pct": 1.0}
        backbone.input_config = SimpleNamespace(**whole)
        return backbone


def counting(self, own, images):
    self.vit.norm.bias += 1e-3
    return own(images)


class HonestWithTexts(BackboneContract):
    def create_backbone(self):
        return toy_image_text()


class EncodesTogether(HonestWithTexts):
    """The embedding of a class depends on the others."""

    def create_backbone(self):
        backbone = super().create_backbone()
        own = backbone.encode_text

        def together(self, names, templates=None):
            texts = own(names, templates)
            return torch.nn.functional.normalize(texts + 0.3 * texts.mean(dim=0), dim=1)

        backbone.encode_text = MethodType(together, backbone)
        return backbone


VIOLATORS = [
    ("test_frozen", Trains),
    ("test_frozen", Drops),
    ("test_shapes", IsNarrower),
    ("test_parts_compose_to_the_whole", with_method("forward", lambda s, own, x: 2 * own(x))),
    (
        "test_images_are_independent",
        with_method("pool", lambda s, own, tokens: own(tokens) + 0.3 * own(tokens).mean(0)),
    ),
    ("test_passes_change_nothing", with_method("forward", counting)),
    ("test_same_weights_again", DrawsItsWeights),
    (
        "test_precision",
        with_method("pool", lambda s, own, x: own(torch.from_numpy(s.feed(2, x).numpy()) + x)),
    ),
    ("test_input_config", HasNoDeviation),
    ("test_text_side", EncodesTogether),
]


@pytest.mark.parametrize(("name", "violator"), VIOLATORS)
def test_noticed(notices, name, violator):
    honest = HonestWithTexts if issubclass(violator, HonestWithTexts) else Honest
    assert notices(name, honest, violator, (AssertionError, TypeError))


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(BackboneContract)
