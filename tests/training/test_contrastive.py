import numpy as np
import pytest
import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch.nn.functional import normalize

from avalanche_peftcl.benchmarks import CaptionedImages, ImageArray, make_captioned
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.functional import contrastive_loss
from avalanche_peftcl.models import ImageEncoder, InputConfig
from avalanche_peftcl.models.branch import build_frozen
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.testing import (
    captioned_backbone,
    captioned_benchmark,
    toy_backbone,
    toy_benchmark,
)
from avalanche_peftcl.testing.probes import outputs
from avalanche_peftcl.training import Contrastive
from avalanche_peftcl.training.contrastive import build_contrastive
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.plugins import GradientProjectionPlugin, TextRetrievalPlugin

QUICK = {"lr": 0.01, "train_epochs": 8, "train_mb_size": 12, "mixed_precision": "no"}


def embed(strategy, experience):
    """Return the embeddings of an experience's images, with the test transforms, on unit norm."""
    data = experience.dataset.eval()
    images = torch.stack([data[i][0] for i in range(len(data))])
    with torch.no_grad():
        return normalize(strategy.network.eval()(images), dim=1)


@pytest.mark.parametrize("build", [None, build_lora])
def test_learns_with_any_module_and_leaves_both_towers(build):
    torch.manual_seed(0)
    backbone, benchmark = captioned_backbone(), captioned_benchmark((7,))
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    texts = backbone.encode_text(["a bee"]).clone()
    module = None if build is None else build(backbone=backbone)
    options = QUICK | ({"train_epochs": 12, "lr": 0.03} if build else {})
    matrix = AccuracyMatrix()
    strategy = build_contrastive(
        backbone=backbone,
        module=module,
        evaluator=EvaluationPlugin(matrix, loggers=[BaseLogger()]),
        **options,
    )
    strategy.eval(benchmark.test_stream)
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    assert float(matrix.baseline[0]) <= 3 / 7
    assert float(matrix.matrix[0, 0]) >= 5 / 7
    assert strategy.retrieval.recalls[0][0] >= 5 / 7
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())
    assert torch.equal(texts, backbone.encode_text(["a bee"]))
    assert all(p.grad is None for p in backbone.text.module.parameters())


def test_accuracies_are_recall_within_the_experience():
    """By hand: of the embeddings of all test images and captions, in NumPy."""
    torch.manual_seed(0)
    strategy = build_contrastive(backbone=captioned_backbone(), **QUICK | {"train_epochs": 2})
    benchmark = captioned_benchmark()
    strategy.train(benchmark.train_stream[0])
    strategy.eval(benchmark.test_stream)
    for e, test in enumerate(benchmark.test_stream):
        z = embed(strategy, test).numpy()
        own = [benchmark.captions[y] for y in test.dataset.targets]
        flat = [text for texts in own for text in texts]
        w = strategy.network.backbone.encode_text(flat).numpy()
        similarity = z @ w.T
        found = [flat[j] in own[i] for i, j in enumerate(similarity.argmax(axis=1))]
        logits, targets = outputs(strategy, test), torch.tensor(list(test.dataset.targets))
        assert (logits.argmax(dim=1) == targets).tolist() == found
        ranked = similarity.argmax(axis=0)
        back = [flat[j] in own[i] for j, i in enumerate(ranked)]
        assert strategy.retrieval.recalls[0][e] == pytest.approx(np.mean(back))
        columns = (logits > -1000).any(dim=0).nonzero()[:, 0]
        assert columns.tolist() == targets.tolist()


def test_the_loss_is_of_the_captions_that_were_drawn():
    seen = []

    class Look(GradientProjectionPlugin):
        def before_training_exp(self, strategy, **kwargs):
            pass

        after_update = after_training_exp = before_training_exp

        def before_update(self, strategy, **kwargs):
            drawn = strategy._mb_texts
            z, scale = strategy.mb_features[-1].detach(), strategy.network.backbone.logit_scale
            y = strategy.mb_y
            told = [strategy.captions[int(i)] for i in y]
            side = strategy.network.backbone
            which = [
                [float((side.encode_text([t])[0] - w).abs().max()) for t in own].index(0.0)
                for own, w in zip(told, drawn, strict=True)
            ]
            texts = [own[i] for own, i in zip(told, which, strict=True)]
            same = torch.tensor([[a == b for a in texts] for b in texts])
            wanted = contrastive_loss(z, drawn, scale, same=same)
            seen.append((float(strategy.loss.detach()), float(wanted), tuple(which)))

    torch.manual_seed(0)
    strategy = build_contrastive(
        backbone=captioned_backbone(), plugins=[Look()], **QUICK | {"train_epochs": 1}
    )
    strategy.train(captioned_benchmark().train_stream[0])
    assert seen
    for loss, wanted, _ in seen:
        assert loss == pytest.approx(wanted, rel=1e-5)
    assert {i for *_, which in seen for i in which} == {0, 1}  # each caption has its turn


def test_a_caption_that_all_share_is_no_negative():
    images = ImageArray(np.zeros((4, 16, 16, 3), np.uint8), [0] * 4)
    photos = CaptionedImages(images, [["a cat"]] * 4)
    benchmark = make_captioned(
        photos, photos, names=["cats"], input_config=InputConfig(img_size=16), augment="none"
    )
    strategy = build_contrastive(backbone=captioned_backbone(), **QUICK | {"train_epochs": 1})
    strategy.train(benchmark.train_stream[0])
    assert float(strategy.loss) == 0
    strategy.eval(benchmark.test_stream)
    assert strategy.retrieval.recalls == [[1.0]]


def test_projection_keeps_old_similarities():
    """Exactly, with threshold 1; without it the same training moves them."""
    moved = {}
    for threshold in (None, 1.0):
        torch.manual_seed(0)
        # few images of rank below the width, so that something is left to learn in
        benchmark = captioned_benchmark((3, 4), per_word=1)
        plugins = [] if threshold is None else [GradientProjectionPlugin(threshold, n_samples=None)]
        backbone = captioned_backbone()
        module = build_lora(backbone=backbone, blocks=[2])
        options = QUICK | {"train_epochs": 6}
        strategy = build_contrastive(backbone=backbone, module=module, plugins=plugins, **options)
        first, second = benchmark.train_stream
        strategy.train(first)
        texts = strategy.encode(["a bee", "a cat", "one small dog"])
        old = embed(strategy, first) @ texts.T
        strategy.train(second)
        moved[threshold] = float((embed(strategy, first) @ texts.T - old).abs().max())
    assert moved[1.0] < 1e-4 < moved[None] / 10, moved


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ConfigError) as caught:
        build_contrastive(backbone=toy_backbone())
    assert "has no text side, which captions are encoded by; take backbone 'open_clip' or" in str(
        caught.value
    )
    backbone = captioned_backbone()
    with pytest.raises(ConfigError, match="no parameter trains"):
        build_contrastive(backbone=backbone, module=build_frozen(backbone=backbone))
    strategy = build_contrastive(backbone=backbone, **QUICK)
    with pytest.raises(ConfigError, match="needs a stream of captioned images, and this one tells"):
        strategy.train(toy_benchmark("task").train_stream[0])
    naive = build_naive(backbone=captioned_backbone(), train_epochs=1)
    with pytest.raises(ConfigError, match="the stream is of captioned images and has no classes"):
        naive.train(captioned_benchmark().train_stream[0])


def test_a_network_of_ones_own():
    backbone = captioned_backbone()
    model = ImageEncoder(backbone, build_lora(backbone=backbone))
    strategy = Contrastive(
        model=model, optimizer=torch.optim.Adam(model.parameters()), train_mb_size=4
    )
    benchmark = captioned_benchmark()
    strategy.train(benchmark.train_stream[0])
    assert strategy.task_label_at_test
    assert strategy.retrieval.headline() is None
    strategy.eval(benchmark.test_stream)
    assert "text to image, R@1 within each experience  [" in strategy.retrieval.headline()


def test_summary_of_what_texts_find():
    plugin = TextRetrievalPlugin()
    assert plugin.summary() == {"text_to_image": [], "average": None, "forgetting": None}
    plugin.enter(0, 0, 0.75)
    assert plugin.summary() == {"text_to_image": [[0.75]], "average": 0.75, "forgetting": None}
    plugin.enter(1, 1, 1.0)
    assert plugin.summary()["average"] is None  # the first was not tested again
    plugin.enter(1, 0, 0.5)
    told = plugin.summary()
    assert told["text_to_image"] == [[0.75, None], [0.5, 1.0]]
    assert (told["forgetting"], told["average"]) == (0.25, pytest.approx(0.75))
