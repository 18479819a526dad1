"""Named terms of the loss: how they are added, shown and remembered; over which classes it is."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.checkpoints import Surroundings, load_state_of, state_of
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import AdapterBranch, PEFTModel
from avalanche_peftcl.models.heads.cosine import CosineHead
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class Term(SupervisedPlugin):
    """Adds a constant, and keeps every loss."""

    def __init__(self, name="constant", value=1.0, hook="before_backward"):
        super().__init__()
        self.name, self.value, self.losses = name, value, []
        setattr(self, hook, self.add)

    def add(self, strategy, **kwargs):
        add_loss(strategy, self.name, torch.tensor(self.value))

    def after_training_iteration(self, strategy, **kwargs):
        self.losses.append((dict(strategy.mb_losses), strategy.loss.item()))


def naive(*plugins, **options):
    torch.manual_seed(0)
    options = {"train_mb_size": 5, "train_epochs": 1, "lr": 0.1} | options
    return build_naive(backbone=toy_backbone(), plugins=plugins, **options)


def test_terms_are_added_once_whenever_they_are_put_in():
    experience = toy_benchmark().train_stream[0]
    alone, early, late = Term(value=0.0), Term("early", 2.0, "after_forward"), Term("late", 4.0)
    naive(alone, lr=1e-9).train(experience)
    naive(early, late, lr=1e-9).train(experience)
    assert [list(terms) for terms, _ in late.losses] == [["early", "late"]] * 3
    for (_, plain), (_, loss) in zip(alone.losses, late.losses, strict=True):
        assert loss == pytest.approx(plain + 6.0)


def test_a_plugin_sees_in_the_loss_what_the_forward_pass_put_in():
    seen = []

    class Sees(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            seen.append(strategy.loss.item())

    naive(Term("early", 100.0, "after_forward"), Sees()).train(toy_benchmark().train_stream[0])
    assert all(loss > 100 for loss in seen)


def test_terms_of_one_name_are_numbered_or_refused():
    plugin = Term("pull", 1.0)
    naive(Term("pull", 2.0), plugin, Term("pull", 3.0)).train(toy_benchmark().train_stream[0])
    named = {name: float(term) for name, term in plugin.losses[0][0].items()}
    assert named == {"pull": 2.0, "pull_2": 1.0, "pull_3": 3.0}

    class Careless(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.mb_losses["pull"] = torch.zeros(())

    with pytest.raises(ConfigError, match="two terms of the loss are called 'pull'"):
        naive(Term("pull"), Careless()).train(toy_benchmark().train_stream[0])


class Told:
    """Stands in for a logger."""

    def __init__(self):
        self.values = []

    def log_metrics(self, metric_values):
        self.values += [(v.name, v.value, v.x_plot) for v in metric_values]


def test_means_are_published_once_an_epoch():
    told, kept = Told(), Term("pull", 0.0)

    class Counts(SupervisedPlugin):
        """1, 2, 3, ..., of which the last minibatch of an epoch has none."""

        def before_backward(self, strategy, **kwargs):
            if (i := strategy.clock.train_epoch_iterations) < 2:
                add_loss(strategy, "count", torch.tensor([float(i)]))

    strategy = naive(kept, Counts(), train_epochs=2, evaluator=EvaluationPlugin(loggers=[told]))
    strategy.train(toy_benchmark().train_stream[0])
    name = "Loss_{}/train_phase/train_stream"
    assert told.values == [
        (name.format(term), value, steps)
        for steps in (3, 6)
        for term, value in (("pull", 0.0), ("count", 0.5))
    ]


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (build_ntk_cl, {"contrast", "orthogonality", "retention"}),
        (lambda **o: build_pegp(head_epochs=0, n_samples=4, **o), {"distance"}),
    ],
)
def test_terms_of_the_methods_are_named(build, names):
    told = Told()
    strategy = build(
        backbone=toy_backbone(),
        train_epochs=1,
        train_mb_size=6,
        evaluator=EvaluationPlugin(loggers=[told]),
    )
    strategy.train(toy_benchmark().train_stream[:2])
    found = {name.split("/")[0].removeprefix("Loss_"): value for name, value, _ in told.values}
    assert names <= set(found)
    assert all(found[name] != 0 for name in names)


def test_the_means_of_an_epoch_go_on_with_the_state():
    strategy = naive(Term("pull", 2.0))
    strategy._loss_means.sums = {"pull": (torch.tensor(6.0), 3)}
    state = state_of(strategy, Surroundings(strategy))
    strategy._loss_means.begin_epoch()
    load_state_of(strategy, state, Surroundings(strategy))
    told = Told()
    strategy.evaluator.loggers = [told]
    strategy._loss_means.add({"pull": torch.tensor(4.0)})
    strategy._loss_means.publish(strategy)
    assert strategy.evaluator.last_metric_results["Loss_pull/train_phase/train_stream"] == 2.5


# --- over which classes ---------------------------------------------------------------------------


@pytest.mark.parametrize("build", [naive, lambda **o: build_ntk_cl(backbone=toy_backbone(), **o)])
@pytest.mark.parametrize("loss", ["local", "seen"])
def test_the_loss_is_over_the_classes_that_it_says(build, loss):
    """Of two classes at hand the old rows get a gradient only under the loss over all."""
    strategy = build(loss=loss, train_epochs=1, train_mb_size=6)
    strategy.train(toy_benchmark().train_stream[0])
    moved = []

    def keep():
        strategy.loss.backward(retain_graph=True)
        head = strategy.model.head if build is naive else strategy.model.proxies
        moved.append(bool(head.weight.grad[:2].any()))

    strategy.backward = keep
    strategy.train(toy_benchmark().train_stream[1])
    assert set(moved) == {loss == "seen"}


def test_a_local_loss_needs_rows():
    model = SimpleMLP(num_classes=6, input_size=3 * 16 * 16)
    with pytest.raises(ConfigError, match='loss="local" needs the rows of a DynamicModel'):
        PEFTTemplate(model=model, optimizer=None, loss="local")


def test_row_logits_are_computed_once_a_step(monkeypatch):
    calls, forward = [], CosineHead.forward
    monkeypatch.setattr(
        CosineHead,
        "forward",
        lambda head, features: calls.append(len(features)) or forward(head, features),
    )
    strategy = build_ntk_cl(backbone=toy_backbone(), train_epochs=1, train_mb_size=6)
    strategy.train(toy_benchmark().train_stream[0])
    assert calls == [18, 18]  # three views of six images


# --- the order of plugins -------------------------------------------------------------------------


def test_the_users_plugins_stand_where_they_are_asked_to(backbone):
    model = PEFTModel(backbone, AdapterBranch(backbone.embed_dim, backbone.depth))
    user, own = Term("user"), Term("own")

    def names(**options):
        strategy = PEFTTemplate(
            model=model, optimizer=None, plugins=[user], own_plugins=[own], **options
        )
        return [plugin.name for plugin in strategy.plugins if isinstance(plugin, Term)]

    assert names() == names(plugin_order="before") == ["user", "own"]
    assert names(plugin_order="after") == ["own", "user"]
    with pytest.raises(ConfigError, match="plugin_order must be before or after, not 'last'"):
        names(plugin_order="last")


def test_a_compiled_network_is_seen_through(backbone):
    model = PEFTModel(backbone, AdapterBranch(backbone.embed_dim, backbone.depth))
    strategy = PEFTTemplate(model=torch.compile(model), optimizer=None)
    assert strategy.network is model
    assert strategy.grows
