"""What every PEFT module must do."""

import pytest
import torch
from torch import Tensor

from avalanche_peftcl.models import Backbone, Branch, forward_branches
from avalanche_peftcl.testing.toys import toy_backbone


class BranchContract:
    """Subclass, write :meth:`create_branch`, and the suite is yours.

    Attributes:
        identity_at_start: Whether the untrained module leaves the network's output as it is.
        dead_parameters: Endings of the names of parameters that get no gradient.
    """

    identity_at_start = True
    dead_parameters: tuple[str, ...] = ()

    def create_branch(self, backbone: Backbone) -> Branch:
        """Return the module under test, for a pass through ``backbone``."""
        raise NotImplementedError

    def build(self) -> tuple[Backbone, Branch]:
        """Return a toy backbone and the module, seeded."""
        torch.manual_seed(0)
        backbone = toy_backbone()
        return backbone, self.create_branch(backbone)

    def shake(self, branch: Branch) -> None:
        """Move every parameter off its start."""
        with torch.no_grad():
            for p in branch.parameters():
                p.add_(0.1 * torch.randn_like(p))

    def run(self, backbone: Backbone, branch: Branch, images: Tensor) -> Tensor:
        """Return the features of the adapted pass."""
        return forward_branches(backbone, [branch], images)[0]

    def test_start(self) -> None:
        """The untrained module is the identity, where that is claimed."""
        backbone, branch = self.build()
        images = torch.randn(2, 3, 16, 16)
        same = torch.allclose(
            self.run(backbone, branch.eval(), images), backbone(images), atol=1e-5
        )
        assert same or not self.identity_at_start

    def test_changes_the_features(self) -> None:
        """Moved parameters change the output."""
        backbone, branch = self.build()
        self.shake(branch)
        images = torch.randn(2, 3, 16, 16)
        difference = self.run(backbone, branch.eval(), images) - backbone(images)
        assert difference.abs().max() > 1e-4

    def test_gradients(self) -> None:
        """The module's parameters get gradients, the backbone's do not."""
        backbone, branch = self.build()
        self.shake(branch)
        features = self.run(backbone, branch.eval(), torch.randn(2, 3, 16, 16))
        torch.autograd.backward(features.square().sum())
        assert all(p.grad is None for p in backbone.parameters())
        for name, p in branch.named_parameters():
            dead = name.endswith(self.dead_parameters) if self.dead_parameters else False
            assert dead or (p.grad is not None and p.grad.abs().max() > 0), name

    def test_state_dict_round_trip(self) -> None:
        """Loaded parameters give the same features."""
        backbone, branch = self.build()
        self.shake(branch)
        other = self.create_branch(backbone)
        other.load_state_dict(branch.state_dict())
        images = torch.randn(2, 3, 16, 16)
        one = self.run(backbone, branch.eval(), images)
        assert torch.equal(self.run(backbone, other.eval(), images), one)

    def test_images_are_independent(self) -> None:
        """A minibatch of 1 and of 3 give the same features."""
        backbone, branch = self.build()
        self.shake(branch)
        images = torch.randn(3, 3, 16, 16)
        whole = self.run(backbone, branch.eval(), images)
        alone = self.run(backbone, branch, images[:1])
        torch.testing.assert_close(alone, whole[:1], atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precision(self, dtype: torch.dtype) -> None:
        """Features and gradients are finite in float32 and under bfloat16 autocast."""
        backbone, branch = self.build()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            features = self.run(backbone, branch, torch.randn(2, 3, 16, 16))
        torch.autograd.backward(features.float().sum())
        assert features.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in branch.parameters())
