"""The margin between classes at hand: what is lost, what is seen, and who may have one."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import CosineHead, LinearHead, PEFTModel, PrototypeHead
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.plugins import MarginLossPlugin
from avalanche_peftcl.training.plugins.margin import build_margin


class Losses(SupervisedPlugin):
    """Keeps the criterion's value of each minibatch beside one that is worked out here."""

    def __init__(self, margin, *, local):
        super().__init__()
        self.margin, self.local, self.pairs, self.sigmas = margin, local, [], []

    def before_backward(self, strategy, **kwargs):
        head, features = strategy.model.head, strategy.model.last_features
        if isinstance(strategy, PEFTTemplate):
            (features,) = strategy.mb_features
        cosines = F.cosine_similarity(features[:, None].double(), head.weight[None].double(), dim=2)
        own = F.one_hot(strategy.mb_y, cosines.shape[1])
        logits = head.sigma.double() * (cosines - self.margin * own)
        present = set(strategy.experience.classes_in_this_experience if self.local else range(99))
        total = torch.stack([z for c, z in enumerate(logits.exp().unbind(1)) if c in present]).sum(
            0
        )  # over the classes compared
        expected = (total.log() - (logits * own).sum(1)).mean()
        self.pairs.append((strategy.loss.item(), expected.item()))
        self.sigmas.append(head.sigma.item())
        # what others see has no margin
        seen = (head.sigma.double() * cosines).detach()
        torch.testing.assert_close(strategy.mb_output.double(), seen, atol=1e-4, rtol=1e-5)


def network(head=CosineHead):
    torch.manual_seed(0)
    backbone = toy_backbone(depth=1)
    return PEFTModel(backbone, build_adapters(backbone=backbone, r=2), head(backbone.embed_dim))


def make(model, *plugins, strategy=PEFTTemplate, **options):
    return strategy(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        train_epochs=2,
        plugins=plugins,
        evaluator=None,
        **options,
    )


CASES = {
    "local": (PEFTTemplate, {"loss": "local"}),
    "seen": (PEFTTemplate, {"loss": "seen"}),
    "host": (Naive, {}),
}


@pytest.mark.parametrize("scale", [20.0, None])
@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_that_of_cosines_less_the_margin(case, scale):
    kind, options = CASES[case]
    watch = Losses(0.3, local=case == "local")
    strategy = make(network(), MarginLossPlugin(0.3, scale=scale), watch, strategy=kind, **options)
    for experience in toy_benchmark(per_class=4).train_stream[:2]:
        strategy.train(experience)
    assert len(watch.pairs) > 4
    for ours, expected in watch.pairs:  # ours in float32, of logits up to the scale
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-5 * (scale or 1))
    if scale is None:
        assert len(set(watch.sigmas)) > 2  # it trains
    else:
        assert set(watch.sigmas) == {20.0}  # weight decay leaves it alone too
        assert strategy.model.head.sigma.item() == 20.0


def test_evaluation_has_no_margin():
    model, benchmark = network(), toy_benchmark(per_class=4)
    plugin = MarginLossPlugin(0.5)
    strategy = make(model, plugin, eval_every=1)  # evaluated inside the training too
    criterion = strategy._criterion
    told = []

    class Told(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            told.append((strategy.loss.item(), F.cross_entropy(strategy.mb_output, strategy.mb_y)))

    strategy.plugins.append(Told())
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]])
    strategy.eval(benchmark.test_stream[:1])
    assert told
    assert all(loss == pytest.approx(expected.item(), rel=1e-6) for loss, expected in told)
    assert strategy._criterion is criterion


def test_no_margin_and_the_heads_own_factor_are_as_without_it():
    ends = []
    for plugins in ([], [MarginLossPlugin(0.0, scale=None)]):
        model = network()
        torch.manual_seed(1)
        make(model, *plugins).train(toy_benchmark(per_class=4).train_stream[0])
        ends.append(model.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_margin_parts_classes_further():
    gaps = {}
    for margin in (0.0, 0.4):
        model, experience = network(), toy_benchmark(per_class=8).train_stream[0]
        torch.manual_seed(1)
        strategy = make(model, MarginLossPlugin(margin, scale=5.0))
        strategy.train_epochs = 10
        strategy.train(experience)
        data = experience.dataset.eval()
        x = torch.stack([data[i][0] for i in range(len(data))])
        y = torch.tensor(list(data.targets))
        cosines = (model.eval()(x) / 5.0)[:, :2]
        own = cosines.gather(1, y[:, None])[:, 0]
        gaps[margin] = (own - (cosines.sum(1) - own)).mean().item()
    assert gaps[0.4] > 1.05 * gaps[0.0] > 0


def test_views_of_ntk_cl_have_it_each():
    benchmark, losses = toy_benchmark(per_class=4), []

    class First(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            losses.append(strategy.loss.item())

    for plugins in ([], [MarginLossPlugin(0.5, scale=None)]):
        torch.manual_seed(0)
        strategy = build_ntk_cl(
            backbone=toy_backbone(depth=1), r=2, prompt_length=2, train_epochs=1,
            train_mb_size=16, plugins=[*plugins, First()], contrast_weight=0.0,
            orthogonality_weight=0.0, mixed_precision="no",
        )  # fmt: skip
        strategy.train(benchmark.train_stream[0])
    # factor 1 and two classes: each view's loss is -log of a sigmoid, whose slope is below 1
    assert losses[0] + 0.1 < losses[1] < losses[0] + 3 * 0.5


@pytest.mark.parametrize(
    ("head", "there"), [(LinearHead, "LinearHead"), (PrototypeHead, "none that is known here")]
)
def test_other_heads_are_refused(head, there):
    words = rf"needs a trained CosineHead; the trained head of PEFTModel is: {there}\. Take head"
    with pytest.raises(ConfigError, match=words):
        make(network(head), MarginLossPlugin()).train(toy_benchmark(per_class=2).train_stream[0])


def test_a_model_of_somebody_else_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))
    with pytest.raises(ConfigError, match="the trained head of Sequential is: none that is known"):
        make(model, MarginLossPlugin(), strategy=Naive).train(toy_benchmark().train_stream[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"margin": 0.6}, r"margin must be in \[0, 0.5\], not 0.6"),
        ({"margin": -0.1}, r"margin must be in \[0, 0.5\], not -0.1"),
        ({"margin": float("nan")}, r"margin must be in \[0, 0.5\], not nan"),
        ({"scale": 0.0}, "scale must be positive, or None for the factor that the head trains"),
        ({"scale": float("inf")}, "scale must be positive"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    for build in (MarginLossPlugin, build_margin):
        with pytest.raises(ConfigError, match=words):
            build(**options)


def test_a_step_that_breaks_off_leaves_evaluation_without_a_margin():
    class Stop(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            raise KeyboardInterrupt

    strategy = make(network(), MarginLossPlugin(0.3), Stop())
    plain = strategy._criterion
    stream = toy_benchmark(per_class=4)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream.train_stream[0])
    assert strategy._criterion != plain
    strategy.eval(stream.test_stream[:1])
    assert strategy._criterion is plain
