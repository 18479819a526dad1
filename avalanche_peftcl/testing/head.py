"""What every head must do."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Drift,
    FrozenBranch,
    Head,
    LinearDrift,
    PEFTModel,
    ShiftDrift,
)
from avalanche_peftcl.testing.learnable import seeing_backbone
from avalanche_peftcl.testing.probes import differing, differs_when_rebuilt, weights

DIM, PER_CLASS = 32, 12
ROWS = ((0, 1), (2, 3))  # of two experiences


class HeadContract:
    """Subclass, write :meth:`create_head`, and the suite is yours.

    Heads are tried on features of four classes in two experiences: those that train by some steps
    of Adam over the rows of the experience, those that are fitted by what they are told.

    Example:
        >>> from avalanche_peftcl.models import PrototypeHead
        >>> class TestPrototypes(HeadContract):
        ...     def create_head(self, in_features):
        ...         return PrototypeHead(in_features)
        >>> TestPrototypes().test_learns()
    """

    def create_head(self, in_features: int) -> Head:
        """Return the head under test, without rows."""
        raise NotImplementedError

    # --- what the tests are made of ------------------------------------------------------------

    def build(self, n_rows: int = 0, *, seed: int = 0) -> Head:
        """Return a new head with so many rows."""
        torch.manual_seed(seed)
        head = self.create_head(DIM)
        if n_rows:
            self.grow(head, n_rows)
        return head

    def grow(self, head: Head, n_rows: int) -> None:
        """Lengthen a head to so many rows, of the classes ``"class 0"``, ``"class 1"``, ..."""
        known = max((len(tensor) for tensor in head._rows().values()), default=0)
        head.grow(n_rows)
        if n_rows > known:
            head.start([f"class {row}" for row in range(known, n_rows)])

    def features(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return features of the classes of ``rows``, ``(n, D)``, and the row of each."""
        generator = torch.Generator().manual_seed(1 + rows[0])
        means = torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))
        of = torch.tensor(rows).repeat(PER_CLASS)
        noise = torch.randn(len(of), DIM, generator=generator)
        return means[of] + 0.3 * noise, of

    def experience(self, head: Head, rows: Sequence[int], *, shuffled: int | None = None) -> None:
        """Let a head learn the classes of ``rows``.

        Args:
            head: The head; it has the rows.
            rows: Which.
            shuffled: Hand out the images in another order and in minibatches of this size.
        """
        features, of = self.features(rows)
        head.begin(rows, [PER_CLASS] * len(rows))
        if parameters := [p for p in head.parameters() if p.requires_grad]:
            optimizer = torch.optim.Adam(parameters, lr=0.1)
            for _ in range(30):
                optimizer.zero_grad()
                logits = head(features)[:, list(rows)]
                torch.nn.functional.cross_entropy(logits, of - rows[0]).backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
        order, size = torch.arange(len(of)), len(of)
        if shuffled is not None:
            order, size = torch.randperm(len(of)), shuffled
        parts = [order[at : at + size] for at in range(0, len(order), size)]
        for part in parts:
            head.follow(features[part], of[part])
        if head.fitted:
            with torch.no_grad():
                for part in parts:
                    head.observe(features[part], of[part])
                head.settle()

    def learnt(self, experiences: int = 2, *, shuffled: int | None = None) -> Head:
        """Return a head that has learnt one or two experiences, in eval mode."""
        head = self.build()
        for rows in ROWS[:experiences]:
            self.grow(head, 1 + rows[-1])
            self.experience(head, rows, shuffled=shuffled)
        return head.eval()

    def logits(self, head: Head) -> Tensor:
        """Return the logits for all features, ``(B, R)``."""
        with torch.no_grad():
            logits: Tensor = head(torch.cat([self.features(rows)[0] for rows in ROWS]))
        return logits

    # --- logits --------------------------------------------------------------------------------

    def test_shapes(self) -> None:
        """There is a logit a row, for one image and for three; all are finite."""
        for n_rows in (1, 3):
            head = self.build(n_rows).eval()
            for batch in (1, 3):
                logits = head(torch.randn(batch, DIM))
                assert logits.shape == (batch, n_rows)
                assert logits.isfinite().all()

    def test_scores_tell_what_logits_do(self) -> None:
        """What a person is told (:meth:`~.Head.scores`) stands in the order of the logits.

        Probabilities sum to 1, similarities are cosines.
        """
        head = self.learnt()
        logits = self.logits(head)
        with torch.no_grad():
            scores = head.scores(logits)
        in_order = scores.gather(1, logits.argsort(dim=1)).diff(dim=1)
        assert scores.isfinite().all()
        assert (in_order >= -1e-6).all()
        if head.score_name == "probability":
            assert torch.allclose(scores.sum(dim=1), torch.ones(len(scores)))
        if head.score_name == "similarity":
            assert (scores.abs() <= 1 + 1e-5).all()

    def test_learns(self) -> None:
        """Classes are told apart: a fitted head knows all so far, a trained one the last ones."""
        head = self.learnt()
        rows = (0, 1, 2, 3) if head.fitted else ROWS[1]
        features, of = self.features(rows)
        with torch.no_grad():
            among = head(features)[:, list(rows)].argmax(dim=1) + rows[0]
        assert (among == of).float().mean() > 0.9

    def test_grows_without_touching_old_rows(self) -> None:
        """New rows leave the logits of the old ones as they are, to rounding."""
        head = self.learnt(1)
        before = self.logits(head)
        self.grow(head, 4)
        # on some processors a product's columns round by how many there are
        assert torch.allclose(self.logits(head)[:, :2], before, atol=1e-5, rtol=1e-5)

    def test_images_are_independent(self) -> None:
        """An image has its logits alone, and in another order."""
        head = self.learnt()
        features, _ = self.features(ROWS[1])
        with torch.no_grad():
            together = head(features)
            alone = torch.cat([head(feature[None]) for feature in features])
            back = head(features.flip(0)).flip(0)
        assert torch.allclose(alone, together, atol=1e-4, rtol=1e-4)
        assert torch.allclose(back, together, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precision(self, dtype: torch.dtype) -> None:
        """Features in float32 and in bfloat16 are observed, followed and scored."""
        head = self.build(2)
        features, of = self.features(ROWS[0])
        head.begin(ROWS[0], [PER_CLASS] * 2)
        with torch.no_grad(), torch.autocast("cpu", enabled=dtype == torch.bfloat16):
            head.follow(features.to(dtype), of)
            if head.fitted:
                head.observe(features.to(dtype), of)
                head.settle()
            assert head(features.to(dtype)).isfinite().all()

    # --- what is fitted ------------------------------------------------------------------------

    def test_order_does_not_matter(self) -> None:
        r"""Images are observed in any order and in any minibatches, to the same logits.

        Sums in float64 err by at most ``n`` times :math:`2^{-53}` of their terms; what remains
        after a well-posed solve is the rounding of logits, some ``2^{-24}``.
        """
        whole, parts = self.logits(self.learnt()), self.logits(self.learnt(shuffled=5))
        if not self.build().fitted:
            return  # nothing was handed out in parts
        bound = 64 * torch.finfo(torch.float32).eps * float(whole.abs().max())
        assert (parts - whole).abs().max() <= bound

    def test_settles_once(self) -> None:
        """To settle again, with nothing observed in between, changes nothing."""
        head = self.learnt()
        logits, before = self.logits(head), weights(head)
        head.settle()
        assert not differing(weights(head), before)
        assert torch.equal(self.logits(head), logits)

    def test_removes_what_it_observed(self) -> None:
        """A head that observed another experience and removed it is one that never saw it."""
        head, other = self.learnt(), self.learnt(1)
        self.grow(other, 4)
        features, of = self.features(ROWS[1])
        with torch.no_grad(), _or_skipped():
            head.remove(features[:5], of[:5])
            head.remove(features[5:], of[5:])
        head.settle()
        assert torch.allclose(self.logits(head), self.logits(other), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("drift", [LinearDrift(torch.eye(DIM)), ShiftDrift(Tensor.clone)])
    def test_features_that_stay_move_nothing(self, drift: Drift) -> None:
        """A drift that leaves features where they are leaves the logits, if the head can move."""
        head = self.learnt()
        before = self.logits(head)
        with _or_skipped():
            head.move(drift)
        head.settle()
        assert torch.allclose(self.logits(head), before, atol=1e-4, rtol=1e-4)

    def test_moves_as_linear_features_do(self) -> None:
        """A linear drift, if the head can move, makes it what it is on features moved by hand."""
        generator = torch.Generator().manual_seed(2)
        turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
        drift = LinearDrift(turn * torch.linspace(0.5, 2, DIM))
        head, other = self.learnt(), self.build(4).eval()
        with _or_skipped():
            head.move(drift)
        head.settle()
        with torch.no_grad():
            for rows in ROWS:
                features, of = self.features(rows)
                other.begin(rows, [PER_CLASS] * len(rows))
                other.observe(drift(features), of)
                other.settle()
            moved = drift(torch.cat([self.features(rows)[0] for rows in ROWS]))
            assert torch.allclose(head(moved), other(moved), atol=1e-3, rtol=1e-3)

    # --- training ------------------------------------------------------------------------------

    def test_every_parameter_gets_a_gradient(self) -> None:
        """What is a parameter trains; what is fitted belongs in buffers."""
        head = self.learnt()
        features, of = self.features(ROWS[1])
        if named := dict(head.named_parameters()):
            torch.nn.functional.cross_entropy(head(features), of).backward()  # type: ignore[no-untyped-call]  # torch's own
        assert not [name for name, p in named.items() if p.grad is None or not p.grad.any()]

    def test_same_seed_same_numbers(self) -> None:
        """Two heads of one seed learn the same, bit for bit."""
        assert not differing(weights(self.learnt()), weights(self.learnt()))

    # --- what is kept --------------------------------------------------------------------------

    @pytest.mark.parametrize("n_rows", [0, 2, 7])
    def test_state_dict_into_a_head_of_any_size(self, n_rows: int) -> None:
        """A new head with fewer rows, or more, scores the same with the state dict."""
        head = self.learnt()
        other = self.build(n_rows, seed=1).eval()
        other.load_state_dict(head.state_dict())
        assert torch.equal(self.logits(other), self.logits(head))

    def test_goes_on_from_its_state(self) -> None:
        """A new head with the state dict learns the next experience to the same logits.

        So it does from inside an experience, with what :meth:`~.Head.passing_state` holds.
        """
        old = self.learnt(1)
        self.grow(old, 4)
        old.begin(ROWS[1], [PER_CLASS] * 2)
        features, of = self.features(ROWS[1])
        old.follow(features[:6], of[:6])
        new = self.build(seed=1).eval()
        new.load_state_dict(old.state_dict())
        new.begin(ROWS[1], [PER_CLASS] * 2)
        new.load_passing_state(old.passing_state())
        assert torch.equal(self.logits(new), self.logits(old))
        for head in (old, new):
            self.experience(head, ROWS[1])
        assert torch.equal(self.logits(new), self.logits(old))

    def test_exported_network_predicts_the_same(self) -> None:
        """A network with the head, built again as it says, gives the same logits."""
        torch.manual_seed(0)
        head = self.create_head(DIM)
        model = PEFTModel(seeing_backbone(), FrozenBranch(), head).eval()
        model.start_experience([(0, 0), (0, 1)])
        model.start_rows(0, ["class 0", "class 1"])
        self.experience(head, ROWS[0])
        images = torch.rand(4, 3, 16, 16)
        assert differs_when_rebuilt(model, seeing_backbone(), images) is None


@contextmanager
def _or_skipped() -> Iterator[None]:
    """Skip the test of a head that says that it cannot."""
    try:
        yield
    except ConfigError as refused:
        pytest.skip(str(refused))
