"""Every plugin, metric and logger built in keeps the contract of its kind."""

import pytest
import torch
from pictures import captioned, folders

from avalanche_peftcl.evaluation import (
    accuracy_matrix_metrics,
    any_time_metrics,
    cost_metrics,
    ntk_metrics,
    retrieval_metrics,
    wrong_matches_metrics,
    zero_shot_retention_metrics,
)
from avalanche_peftcl.evaluation.host import accuracy, loss
from avalanche_peftcl.logging import tensorboard, wandb
from avalanche_peftcl.models import CosineHead, NTKCLModel, PEFTModel, PrototypeHead
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.testing import (
    LoggerContract,
    MetricContract,
    PluginContract,
    blind_backbone,
    toy_image_text,
)
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import (
    DriftCompensationPlugin,
    FeatureReplayPlugin,
    GradientProjectionPlugin,
    HeadOnlyPlugin,
    HeadPlugin,
    MarginLossPlugin,
    ReleasedProjectionPlugin,
    RetentionPlugin,
    RunningMeanPlugin,
)
from avalanche_peftcl.training.plugins.host import ewc, lwf, replay


def strategy(model, plugins):
    return PEFTTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        train_epochs=2,
        train_mb_size=8,
        eval_mb_size=8,
        plugins=plugins,
        evaluator=None,
    )


class TestGradientProjection(PluginContract):
    def create_plugin(self):
        return GradientProjectionPlugin(0.99, n_samples=8)


class TestGradientProjectionOfTheGradient(PluginContract):
    def create_plugin(self):
        return GradientProjectionPlugin(0.99, where="gradient", n_samples=8)


class TestSoftCentredProjection(PluginContract):
    def create_plugin(self):
        return GradientProjectionPlugin(0.9, centred=True, strength=0.5, n_samples=8)


class TestRatioProjection(PluginContract):
    def create_plugin(self):
        return GradientProjectionPlugin(rule="ratio", n_samples=8)


class TestWatchedProjection(PluginContract):
    scenarios = ("class", "task", "domain")

    def create_plugin(self):
        return GradientProjectionPlugin(0.99, n_samples=4, watch=3)


class TestReleasedProjection(PluginContract):
    def create_plugin(self):
        return ReleasedProjectionPlugin(0.99, n_samples=8)


class TestRetention(PluginContract):
    def create_plugin(self):
        return RetentionPlugin(0.1)


class TestHeadOnly(PluginContract):
    def create_plugin(self):
        return HeadOnlyPlugin(1)


class TestHead(PluginContract):
    def create_plugin(self):
        return HeadPlugin()

    def create_strategy(self, plugins):
        backbone = blind_backbone()
        branch = build_attention_adapters(backbone=backbone)
        return strategy(PEFTModel(backbone, branch, PrototypeHead(backbone.embed_dim)), plugins)


class TestMargin(PluginContract):
    def create_plugin(self):
        return MarginLossPlugin(0.2)

    def create_strategy(self, plugins):
        backbone = blind_backbone()
        branch = build_attention_adapters(backbone=backbone)
        return strategy(PEFTModel(backbone, branch, CosineHead(backbone.embed_dim)), plugins)


class TestDriftCompensation(PluginContract):
    def create_plugin(self):
        return DriftCompensationPlugin(n_samples=8)

    def create_strategy(self, plugins):
        backbone = blind_backbone()
        branch = build_attention_adapters(backbone=backbone)
        return strategy(PEFTModel(backbone, branch, PrototypeHead(backbone.embed_dim)), plugins)


class TestFeatureReplay(PluginContract):
    def create_plugin(self):
        return FeatureReplayPlugin(samples_per_class=16, epochs=2)


class TestRunningMean(PluginContract):
    def create_plugin(self):
        return RunningMeanPlugin("channel", ["channel_copies.0"])

    def create_strategy(self, plugins):
        return strategy(NTKCLModel(blind_backbone(), r=4, prompt_length=2), plugins)


class TestReplay(PluginContract):
    def create_plugin(self):
        return replay(mem_size=8)


class TestEWC(PluginContract):
    scenarios = ("class", "domain", "online")

    def create_plugin(self):
        return ewc(ewc_lambda=1.0)


class TestLwF(PluginContract):
    scenarios = ("class", "domain", "online")

    def create_plugin(self):
        return lwf()


class TestAccuracyMatrix(MetricContract):
    def create_metric(self):
        return accuracy_matrix_metrics()


class TestAnyTime(MetricContract):
    def create_metric(self):
        return any_time_metrics(every=1, images_per_experience=3)


class TestCost(MetricContract):
    measures = ("Seconds", "Peak")

    def create_metric(self):
        return cost_metrics()


class TestLoss(MetricContract):
    def create_metric(self):
        return loss(epoch=True, epoch_running=True)


class TestAccuracy(MetricContract):
    def create_metric(self):
        return accuracy(minibatch=True, epoch_running=True)


class TestNTK(MetricContract):
    def create_metric(self):
        return ntk_metrics(probe_images=6, old_images=4, chunk_size=4)


class ImageTextContract(MetricContract):
    """Runs with a network of images and texts, and images beside the stream."""

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path):
        self.place = tmp_path

    def create_backbone(self):
        return toy_image_text(blind_backbone())


class TestRetrieval(ImageTextContract):
    def create_metric(self):
        captions = captioned(self.place, {f"{i}.png": f"scene {i}" for i in range(6)})
        return retrieval_metrics(root=self.place, captions=captions)


class TestWrongMatches(ImageTextContract):
    def create_metric(self):
        return wrong_matches_metrics(images_per_experience=3)


class TestZeroShotRetention(ImageTextContract):
    def create_metric(self):
        folders(self.place, ["night", "snow", "sea"], n=2)
        return zero_shot_retention_metrics(root=self.place)


class TestTensorboard(LoggerContract):
    def create_logger(self, folder, *, resume):
        return tensorboard(output=folder, resume=resume, listed=["tensorboard"])


class TestWandB(LoggerContract):
    def create_logger(self, folder, *, resume):
        return wandb(output=folder, resume=resume, settings={}, mode="disabled")
