"""What every PEFT module must do."""

import pytest
import torch
from torch import Tensor

from avalanche_peftcl.models import Backbone, Branch, PEFTModel, forward_branches
from avalanche_peftcl.testing.learnable import seeing_backbone
from avalanche_peftcl.testing.probes import differing, differs_when_rebuilt, weights


class BranchContract:
    """Subclass, write :meth:`create_branch`, and the suite is yours.

    Attributes:
        identity_at_start: Whether the untrained module leaves the network's output as it is.
        dead_parameters: Endings of the names of parameters that get no gradient.

    Example:
        >>> from avalanche_peftcl.models import build_lora
        >>> class TestLoRA(BranchContract):
        ...     def create_branch(self, backbone):
        ...         return build_lora(backbone=backbone, r=2)
        >>> TestLoRA().test_start()
    """

    identity_at_start = True
    dead_parameters: tuple[str, ...] = ()

    def create_branch(self, backbone: Backbone) -> Branch:
        """Return the module under test, for a pass through ``backbone``."""
        raise NotImplementedError

    # --- what the tests are made of ------------------------------------------------------------

    def build(self, *, seed: int = 0) -> tuple[Backbone, Branch]:
        """Return a frozen toy network, always the same, and the module."""
        torch.manual_seed(seed)
        backbone = seeing_backbone()
        return backbone, self.create_branch(backbone)

    def shaken(self) -> tuple[Backbone, Branch]:
        """Return a network and a module of which every parameter is off its start."""
        backbone, branch = self.build()
        with torch.no_grad():
            for p in branch.parameters():
                p.add_(0.1 * torch.randn_like(p))
        return backbone, branch

    def images(self, batch: int = 4) -> Tensor:
        """Return images, always the same ones."""
        return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(self, backbone: Backbone, branch: Branch, images: Tensor) -> Tensor:
        """Return the features of the adapted pass, with gradient."""
        return forward_branches(backbone, [branch], images)[0]

    # --- the pass ------------------------------------------------------------------------------

    def test_start(self) -> None:
        """The untrained module is the identity, where that is claimed."""
        backbone, branch = self.build()
        features, frozen = self.run(backbone, branch.eval(), self.images()), backbone(self.images())
        same = features.shape == frozen.shape and torch.allclose(features, frozen, atol=1e-5)
        assert same or not self.identity_at_start

    def test_changes_the_features(self) -> None:
        """Moved parameters change the output."""
        if not list(self.build()[1].parameters()):
            pytest.skip("the module has no parameters")
        (backbone, start), (_, moved) = self.build(), self.shaken()
        one = self.run(backbone, start.eval(), self.images())
        other = self.run(backbone, moved.eval(), self.images())
        assert not torch.allclose(one, other, atol=1e-4)

    def test_width(self) -> None:
        """The feature is as wide as the module says, in minibatches of 1 and of 3."""
        backbone, branch = self.build()
        for batch in (1, 3):
            features = self.run(backbone, branch.eval(), self.images(batch))
            assert features.shape == (batch, branch.out_features(backbone))

    def test_images_are_independent(self) -> None:
        """An image has its feature alone, in another order, and beside other images."""
        backbone, branch = self.shaken()
        branch.eval()
        images = self.images(4)
        together = self.run(backbone, branch, images)
        alone = torch.cat([self.run(backbone, branch, image[None]) for image in images])
        back = self.run(backbone, branch, images.flip(0)).flip(0)
        beside = self.run(backbone, branch, torch.cat([1 - images, images]))[4:]
        for how, features in (("alone", alone), ("in reverse", back), ("beside others", beside)):
            assert torch.allclose(features, together, atol=1e-4, rtol=1e-4), how

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precision(self, dtype: torch.dtype) -> None:
        """Features and gradients are finite in float32 and under bfloat16 autocast."""
        backbone, branch = self.build()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = self.run(backbone, branch, self.images())
        if features.requires_grad:
            torch.autograd.backward(features.float().sum())
        assert features.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in branch.parameters())

    # --- training ------------------------------------------------------------------------------

    def test_gradients(self) -> None:
        """The module's parameters get gradients, the backbone's do not."""
        backbone, branch = self.shaken()
        features = self.run(backbone, branch.eval(), self.images())
        terms = list(branch.losses().values())
        loss = torch.stack([features.square().sum(), *terms]).sum()
        if loss.requires_grad:
            torch.autograd.backward(loss)
        assert all(p.grad is None for p in backbone.parameters())
        for name, p in branch.named_parameters():
            dead = name.endswith(self.dead_parameters) if self.dead_parameters else False
            assert dead or (p.grad is not None and p.grad.abs().max() > 0), name

    def test_backbone_is_bit_identical(self) -> None:
        """A step of training leaves the backbone as it was, and in eval mode."""
        backbone, branch = self.build()
        before = weights(backbone)
        parameters = [p for p in branch.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD([*parameters, torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        features = self.run(backbone, branch.train(), self.images())
        if features.requires_grad:
            torch.autograd.backward(features.sum())
        optimizer.step()
        assert not differing(weights(backbone), before)
        assert not any(module.training for module in backbone.modules())

    def test_same_seed_same_weights(self) -> None:
        """Two modules of one seed are one."""
        assert not differing(weights(self.build()[1]), weights(self.build()[1]))

    # --- what is kept --------------------------------------------------------------------------

    def test_state_dict_round_trip(self) -> None:
        """A new module with the parameters gives the same features."""
        backbone, branch = self.shaken()
        _, other = self.build(seed=1)
        other.load_state_dict(branch.state_dict())
        one = self.run(backbone, branch.eval(), self.images())
        assert torch.equal(self.run(backbone, other.eval(), self.images()), one)

    def test_exported_network_predicts_the_same(self) -> None:
        """A network with the module, built again as it says, gives the same logits."""
        backbone, branch = self.shaken()
        model = PEFTModel(backbone, branch).eval()
        model.start_experience([(0, 0), (0, 1)])
        with torch.no_grad():
            model.head.get_parameter("weight").normal_()
        assert differs_when_rebuilt(model, seeing_backbone(), self.images()) is None
