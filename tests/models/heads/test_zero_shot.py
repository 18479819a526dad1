import copy

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    FrozenBranch,
    ImageTextBackbone,
    InputConfig,
    LinearHead,
    PEFTModel,
    TextTower,
    ZeroShotHead,
    build_adapters,
    build_ridge,
    build_zero_shot,
    create_backbone,
)
from avalanche_peftcl.testing import HeadContract, toy_backbone, toy_images
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.networks import build_network

WIDTH = 24


class Letters(nn.Module):
    """An embedding a letter, summed."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(128, WIDTH)

    def forward(self, tokens):
        return self.table(tokens).sum(dim=1)


def letters(texts):
    return torch.tensor([list(text.encode()[:20].ljust(20)) for text in texts])


def image_text(seed=0, *, text=True):
    torch.manual_seed(seed)
    vit = toy_backbone().vit
    return ImageTextBackbone(
        vit,
        nn.Linear(32, WIDTH, bias=False),
        InputConfig(img_size=16),
        out_features=WIDTH,
        logit_scale=30.0,
        text=TextTower(Letters(), letters) if text else None,
    )


def benchmark(names="abcdef", **options):
    defaults = {"classes_per_experience": [2, 2, 2], "augment": "none"}
    return make_benchmark(
        toy_images(),
        toy_images(seed=1),
        input_config=InputConfig(img_size=16),
        scenario="class",
        class_names=None if names is None else list(names),
        **(defaults | options),
    )


def zero_shot(backbone, **options):
    return lambda width: build_zero_shot(in_features=width, backbone=backbone, **options)


class TestContract(HeadContract):
    def create_head(self, in_features):
        head = ZeroShotHead(in_features)
        means = torch.randn(4, in_features, generator=torch.Generator().manual_seed(0))
        head.texts = lambda names: F.normalize(means)[[int(n.split()[1]) % 4 for n in names]]
        return head


def test_logits_are_scaled_cosines_to_the_texts():
    backbone, names = image_text(), ["cat", "dog", "gnu"]
    head = build_zero_shot(
        in_features=WIDTH,
        backbone=backbone,
        class_words={"cat": "tabby", "dog": "dog", "gnu": "gnu"},
        templates=["a {}", "{}"],
    )
    head.grow(3)
    head.start(names)
    z = torch.randn(5, WIDTH)
    texts = backbone.encode_text(["tabby", "dog", "gnu"], ["a {}", "{}"]).double()
    expected = 30 * F.cosine_similarity(z.double()[:, None], texts[None], dim=2)
    torch.testing.assert_close(head(z).double(), expected, atol=1e-5, rtol=0)


def test_cosines_are_float32_under_autocast():
    backbone = image_text()
    head = build_zero_shot(in_features=WIDTH, backbone=backbone)
    head.grow(2)
    head.start(["cat", "dog"])
    z = torch.randn(5, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(z), head(z.float()))
        assert head(z).dtype == torch.float32
    assert torch.equal(head(z), head(z))


@pytest.mark.parametrize("width", [24, 192, 512])
def test_a_growing_class_list_leaves_old_logits(width):
    torch.manual_seed(0)
    table = F.normalize(torch.randn(100, width))
    head, z = ZeroShotHead(width), torch.randn(33, width)
    head.texts = lambda names: table[[int(name) for name in names]]
    earlier = torch.zeros(33, 0)
    for n_rows in (1, 2, 10, 33, 100):
        known = earlier.shape[1]
        head.grow(n_rows)
        head.start([str(i) for i in range(known, n_rows)])
        rows, logits = head.rows, head(z)
        assert torch.equal(rows, table[:n_rows])
        assert torch.equal(logits[:, :known], earlier)
        earlier = logits


def test_classes_of_a_stream_are_found_by_their_names():
    backbone, stream = image_text(), benchmark(["cat", "dog", "gnu", "owl", "bat", "cow"])
    strategy = build_closed_form(backbone=backbone, head=zero_shot(backbone), eval_mb_size=4)
    images = torch.rand(3, 3, 16, 16)
    logits = []
    for number, experience in enumerate(stream.train_stream, start=1):
        strategy.train(experience)
        names = [stream.class_names[c] for c in strategy.network.classes.keys[:, 1].tolist()]
        assert len(names) == 2 * number
        assert torch.equal(strategy.network.head.rows, backbone.encode_text(names))
        logits.append(strategy.network.eval()(images).detach())
    for earlier in logits[:-1]:
        columns = (earlier > -1000).all(dim=0).nonzero()[:, 0]
        assert torch.equal(logits[-1][:, columns], earlier[:, columns])
    assert not list(strategy.network.head.parameters())
    assert not any(p.requires_grad for p in strategy.network.parameters())


@pytest.mark.parametrize("scenario", ["online", "task", "domain"])
def test_every_scenario_hands_names_on(scenario):
    options = {"scenario": scenario}
    if scenario == "domain":
        n = [i % 3 for i in range(36)]
        options |= {"classes_per_experience": None, "train_domains": n, "test_domains": n}
    backbone = image_text()
    names = [f"photo/{name}" for name in "abcdef"]
    made = make_benchmark(
        toy_images(),
        toy_images(seed=1),
        input_config=InputConfig(img_size=16),
        class_names=names,
        **({"classes_per_experience": [2, 2, 2], "augment": "none"} | options),
    )
    strategy = build_closed_form(backbone=backbone, head=zero_shot(backbone))
    for experience in made.train_stream:
        strategy.train(experience)
    keys = strategy.network.classes.keys[:, 1].tolist()
    expected = backbone.encode_text([made.class_names[c].removeprefix("photo/") for c in keys])
    assert torch.equal(strategy.network.head.rows, expected)


def test_what_trains_in_front_of_it_trains_by_its_logits():
    backbone = image_text()
    branch = build_adapters(backbone=backbone, r=2)
    strategy = build_naive(
        backbone=backbone, module=branch, head=zero_shot(backbone), train_epochs=2, lr=0.1
    )
    assert strategy.network.proxies is None
    before = copy.deepcopy(branch.state_dict())
    weights = copy.deepcopy(backbone.text.module.state_dict())
    for experience in benchmark().train_stream:
        strategy.train(experience)
    assert any(not torch.equal(v, before[k]) for k, v in branch.state_dict().items())
    assert all(torch.equal(v, weights[k]) for k, v in backbone.text.module.state_dict().items())
    assert all(p.grad is None for p in backbone.text.module.parameters())


def test_trained_heads_are_still_refused_where_nothing_trains():
    with pytest.raises(ConfigError, match="nothing trains here, and a LinearHead is trained"):
        build_closed_form(backbone=toy_backbone(), head=LinearHead)


def test_a_network_with_it_is_copied_and_loaded_whole():
    backbone = image_text()
    model = build_network(backbone, FrozenBranch(), zero_shot(backbone)).eval()
    model.start_experience([(0, 0), (0, 1)])
    model.start_rows(0, ["cat", "dog"])
    twin = copy.deepcopy(model)
    assert twin.head.texts.side is twin.backbone
    twin.start_experience([(0, 2)])
    twin.start_rows(2, ["cat", "dog", "gnu"])
    alone = image_text(seed=1, text=False)
    other = PEFTModel(alone, FrozenBranch(), ZeroShotHead(WIDTH)).eval()
    other.load_state_dict(model.state_dict())
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(other(images), model(images))
    assert torch.equal(twin(images)[:, :2], model(images))
    other.start_experience([(0, 2)])
    with pytest.raises(ConfigError, match="an exported network knows the classes that it was made"):
        other.start_rows(2, ["cat", "dog", "gnu"])


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (
            lambda: build_zero_shot(in_features=32, backbone=toy_backbone()),
            "a ViTBackbone has no text side, which the names of classes are encoded by; take backb",
        ),
        (
            lambda: build_zero_shot(in_features=48, backbone=image_text()),
            "a zero_shot head reads the embedding of an image, of width 24, and not 48 features",
        ),
        (
            lambda: build_zero_shot(in_features=24, backbone=image_text(), templates=["a photo"]),
            "a template is a sentence with {} where the name of the class stands",
        ),
        (
            lambda: build_zero_shot(
                in_features=24, backbone=image_text(), class_words={"cat": "tabby"}
            ).start(["cat", "n1", "n2", "n3", "n4"]),
            "class_words has no word for n1, n2, n3 and 1 more; give one for each class",
        ),
        (
            lambda: build_zero_shot(in_features=24, backbone=image_text()).start(["photo/"]),
            "class names must be words",
        ),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(build, told):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_stream_without_class_names_is_refused():
    backbone = image_text()
    strategy = build_closed_form(backbone=backbone, head=zero_shot(backbone))
    stream = benchmark()
    del stream.class_names
    with pytest.raises(ConfigError, match="begins with the names of classes, and the bench"):
        strategy.train(stream.train_stream[0])
    ridge = build_closed_form(backbone=create_backbone("test_vit", img_size=16))
    ridge.train(stream.train_stream[0])
    assert isinstance(ridge.network.head, type(build_ridge(in_features=2)))


def test_a_strategy_of_avalanche_hands_names_on_too():
    backbone = image_text()
    model = PEFTModel(backbone, build_adapters(backbone=backbone, r=2), zero_shot(backbone))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.branch.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=6,
        train_epochs=1,
        evaluator=EvaluationPlugin(),
    )
    stream = benchmark()
    for experience in stream.train_stream:
        strategy.train(experience)
    names = [stream.class_names[c] for c in model.classes.keys[:, 1].tolist()]
    assert len(names) == 6
    assert torch.equal(model.head.rows, backbone.encode_text(names))


@pytest.mark.gpu
def test_the_text_side_goes_to_the_gpu_and_says_the_same():
    here, there = image_text(), image_text().to("cuda")
    assert {t.device.type for t in there.text.module.parameters()} == {"cuda"}
    names, images = ["cat", "dog", "gnu"], torch.rand(4, 3, 16, 16)
    logits = []
    for backbone, device in ((here, "cpu"), (there, "cuda")):
        model = PEFTModel(backbone, FrozenBranch(), zero_shot(backbone)).to(device).eval()
        model.start_experience([(0, c) for c in range(3)])
        model.start_rows(0, names)
        assert model.head.rows.device.type == device
        logits.append(model(images.to(device)).cpu())
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=0)
