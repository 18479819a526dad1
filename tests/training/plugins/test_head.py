"""Heads that are fitted, beside every strategy."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    FrozenBranch,
    Head,
    LinearHead,
    PEFTModel,
    PrototypeHead,
    RidgeHead,
)
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins import HeadPlugin

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class Ridge(Head):
    """A stranger's head in closed form, which keeps what it hears."""

    fitted = True
    row_tensors = ("weight", "sums")

    def __init__(self, in_features):
        super().__init__(in_features)
        self.register_buffer("gram", torch.zeros(in_features, in_features).double())
        self.register_buffer("sums", torch.zeros(0, in_features).double())
        self.register_buffer("weight", torch.zeros(0, in_features))
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.heard = []

    def begin(self, rows, counts):
        self.heard.append(("begin", rows, counts))

    def follow(self, features, rows):
        assert self.training
        assert not features.requires_grad
        self.heard.append(("follow", rows.tolist()))

    def observe(self, features, rows):
        assert not self.training
        self.heard.append(("observe", rows.tolist()))
        h = features.double()
        self.gram += h.T @ h
        self.sums.index_add_(0, rows, h)

    def settle(self):
        self.heard.append(("settle",))
        ridge = self.gram + 1e-3 * torch.eye(self.in_features).double()
        self.weight = torch.linalg.solve(ridge, self.sums.T).T.float()

    def forward(self, features):
        return self.scale * features.float() @ self.weight.T


def host(**options):
    model = PEFTModel(options.pop("backbone"), FrozenBranch(), options.pop("head")(32))
    return Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        plugins=[HeadPlugin()],
        evaluator=EvaluationPlugin(),
        **options,
    )


BUILD = {
    "naive": lambda **o: build_naive(lr=1e-4, **o),  # its features hardly drift
    "pegp": lambda **o: build_pegp(head_epochs=0, n_samples=4, **o),
    "ntk_cl": build_ntk_cl,
    "host": host,
}
SMALL = {"train_mb_size": 7, "eval_mb_size": 5, "train_epochs": 1}


@pytest.mark.parametrize("name", BUILD)
def test_a_strangers_head_hears_of_every_experience_and_predicts(name):
    torch.manual_seed(0)
    strategy = BUILD[name](backbone=toy_backbone(), head=Ridge, **SMALL)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    head = strategy.model.head
    first, rest = head.heard[0], head.heard[1:]
    assert first == ("begin", [0, 1], [6, 6])
    kinds = [what for what, *_ in rest]
    assert kinds[:2] == ["follow", "follow"]
    assert kinds[-4:] == ["observe", "observe", "observe", "settle"]
    observed = [row for what, *rows in rest if what == "observe" for row in rows[0]]
    data = benchmark.train_stream[0].dataset
    assert observed == [int(y) for y in data.targets]
    for experience in benchmark.train_stream[1:]:
        strategy.train(experience)
    assert head.heard.count(("settle",)) == 3
    model, right = strategy.model.eval(), []
    for experience in benchmark.test_stream:
        images = torch.stack([experience.dataset[i][0] for i in range(6)])
        labels = torch.tensor([int(experience.dataset[i][1]) for i in range(6)])
        right.append((model(images).argmax(1) == labels).float())
    assert torch.cat(right).mean() > 0.5  # of six classes


def test_a_plugin_is_there_where_it_is_needed_and_once(backbone):
    def plugins(head, *given, **options):
        model = PEFTModel(backbone, FrozenBranch(), head)
        strategy = PEFTTemplate(model=model, optimizer=None, plugins=given, **options)
        return [plugin for plugin in strategy.plugins if isinstance(plugin, HeadPlugin)]

    mine = HeadPlugin()
    assert plugins(LinearHead(32)) == []
    assert len(plugins(PrototypeHead(32))) == 1
    assert plugins(PrototypeHead(32), mine) == [mine]
    assert plugins(PrototypeHead(32), own_plugins=[mine]) == [mine]


def test_each_head_gets_back_what_it_held_in_training():
    model = build_ntk_cl(backbone=toy_backbone(), head=PrototypeHead).model
    model.start_experience([(0, 0), (0, 1)])
    plugin, other = HeadPlugin(), HeadPlugin()
    heads = [model.prototypes, model.head]
    for each in (plugin, other):
        each._heads = heads
    for value, head in enumerate(heads):
        head.begin([0, 1], [3, 3])
        head.follow(torch.full((1, head.in_features), float(value)), torch.tensor([0]))
    state = {k: {n: v.clone() for n, v in held.items()} for k, held in plugin.state_dict().items()}
    for head in heads:
        head.begin([0, 1], [3, 3])
    other.load_state_dict(state)
    assert [float(head.running.means[0, 0]) for head in heads] == [0.0, 1.0]
    assert HeadPlugin().state_dict() == {}


def test_features_are_those_of_the_module_that_was_trained():
    torch.manual_seed(0)
    strategy = build_naive(backbone=toy_backbone(), head=PrototypeHead, lr=0.1, **SMALL)
    experience = toy_benchmark().train_stream[0]
    strategy.train(experience)
    model, data = strategy.model.eval(), experience.dataset.eval()
    with torch.no_grad():
        features = model.embed(torch.stack([data[i][0] for i in range(12)]))
    means = torch.stack([features[:6].mean(0), features[6:].mean(0)])
    torch.testing.assert_close(model.head.prototypes, means)


# --- what does not fit ----------------------------------------------------------------------------


def test_nothing_to_train_and_nothing_to_fit_are_refused(backbone):
    with pytest.raises(ConfigError, match="no parameter trains"):
        build_naive(backbone=backbone, module=FrozenBranch(), head=PrototypeHead)
    with pytest.raises(ConfigError, match="a LinearHead is trained"):
        build_nearest_class_mean(backbone=backbone, head=LinearHead)
    with pytest.raises(ConfigError, match=r"a PrototypeHead states no head_sites\(\)"):
        build_pegp(backbone=backbone, head=PrototypeHead, project_head=True)


def test_nearest_class_mean_of_an_adapted_network_trains_nothing(backbone):
    module = build_adapters(backbone=backbone)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    strategy = build_nearest_class_mean(backbone=backbone, module=module, head=Ridge)
    strategy.train(toy_benchmark().train_stream)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert strategy.model.head.heard.count(("settle",)) == 3


def test_class_means_are_those_of_test_transforms():
    """However training images are augmented, a prototype is the mean of what a test would see."""
    backbone, benchmark = toy_backbone(), toy_benchmark(augment="random_resized_crop")
    strategy = build_nearest_class_mean(backbone=backbone, mixed_precision="no")
    experience, means = benchmark.train_stream[0], {}
    strategy.train(experience)
    for name, data in (("test", experience.dataset.eval()), ("train", experience.dataset)):
        items = [data[i] for i in range(len(data))]
        labels = torch.tensor([int(y) for _, y, *_ in items])
        with torch.no_grad():
            features = backbone(torch.stack([image for image, *_ in items]))
        means[name] = torch.stack([features[labels == c].mean(0) for c in (0, 1)])
    torch.testing.assert_close(strategy.model.head.prototypes, means["test"], atol=1e-5, rtol=0)
    assert (means["train"] - means["test"]).abs().max() > 1e-3  # or nothing would be told apart


# --- predictions while an experience trains -------------------------------------------------------


class Watch(SupervisedPlugin):
    """Evaluates on the experience in training after each of its epochs."""

    def __init__(self):
        super().__init__()
        self.correct = []

    def after_training_epoch(self, strategy, **kwargs):
        strategy.eval([strategy.experience])
        self.correct.append(strategy.evaluator.get_last_metrics()[STREAM])


STREAM = "Top1_Acc_Stream/eval_phase/train_stream/Task000"


def watched(head, plugins, **options):
    torch.manual_seed(0)
    backbone, benchmark = toy_backbone(), toy_benchmark()
    strategy = build_naive(
        backbone=backbone,
        head=head,
        plugins=plugins,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
        **(SMALL | {"train_epochs": 2, "lr": 1e-3} | options),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    return strategy


@pytest.mark.parametrize("options", [{}, {"frozen_section": "blocks"}], ids=["pooled", "sections"])
@pytest.mark.parametrize("head", [Ridge, PrototypeHead])
def test_classes_in_training_are_predicted_and_training_does_not_notice(head, options):
    watch = Watch()
    strategy = watched(head, [watch], **options)
    assert len(watch.correct) == 6
    assert min(watch.correct) > 0.6  # of two classes, among two, four and six
    alone = watched(head, [], **options)
    assert all(
        torch.equal(value, alone.model.state_dict()[name])
        for name, value in strategy.model.state_dict().items()
    )


class Broken(Watch):
    """Evaluates, and is stopped in it."""

    def before_eval_iteration(self, strategy, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("then", ["train", "eval"])
def test_what_an_evaluation_that_was_broken_off_was_fitted_to_is_forgotten(then):
    torch.manual_seed(0)
    broken, stream = Broken(), toy_benchmark().train_stream
    strategy = build_naive(backbone=toy_backbone(), head=RidgeHead, plugins=[broken], **SMALL)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(stream[0])
    assert strategy.model.head.counts.tolist() == [6, 6]
    strategy.plugins.remove(broken)
    if then == "train":
        strategy.train(stream[1])
        assert strategy.model.head.counts.tolist() == [0, 0, 6, 6]
    else:
        for _ in range(2):
            strategy.eval(stream[:1])
        assert strategy.model.head.counts.tolist() == [0, 0]


class Keeps(Ridge):
    """Keeps something inside an experience, and cannot predict by it."""

    def passing_state(self):
        return {"seen": torch.ones(())}


def test_a_head_that_does_not_follow_is_fitted_for_evaluations_also_where_a_run_goes_on():
    strategy = watched(Keeps, [])
    plugin = next(p for p in strategy.plugins if isinstance(p, HeadPlugin))
    plugin.load_state_dict(plugin.state_dict())
    head = strategy.model.head
    plugin._experience = toy_benchmark().train_stream[2]  # as inside it
    head.heard.clear()
    plugin.before_eval(strategy)
    assert [name for name, *_ in head.heard] == ["observe", "observe", "observe", "settle"]


def test_of_an_online_stream_a_head_settles_once_an_experience_or_when_it_is_asked():
    torch.manual_seed(0)
    benchmark = toy_benchmark("online")
    strategy = build_nearest_class_mean(backbone=toy_backbone(), head=Ridge, eval_mb_size=5)
    head, chunks = strategy.model.head, list(benchmark.train_stream)
    settled = []
    for chunk in chunks:
        strategy.train(chunk)
        settled.append(head.heard.count(("settle",)))
    n = len(chunks) // 3
    assert n > 1
    assert settled[n - 2 : n] == [0, 1]
    assert settled[-1] == 3
    head.heard.clear()
    strategy.train(chunks[0])
    plugin = next(p for p in strategy.plugins if isinstance(p, HeadPlugin))
    assert plugin.state_dict() == {"unsettled": True}
    for _ in range(2):
        strategy.eval(benchmark.test_stream)
    assert head.heard.count(("settle",)) == 1
    assert plugin.state_dict() == {}
