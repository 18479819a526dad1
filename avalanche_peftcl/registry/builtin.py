"""What this package offers, registered through the same hooks as everybody's.

Import paths instead of imports: listing these costs neither torch nor Avalanche.
"""

from collections.abc import Iterable

from avalanche_peftcl.registry.component import Component, Scenario
from avalanche_peftcl.registry.costs import Costs
from avalanche_peftcl.registry.hookspecs import hookimpl

_MODELS = "avalanche_peftcl.models"
_BENCHMARKS = "avalanche_peftcl.benchmarks"
_TRAINING = "avalanche_peftcl.training"
_OPEN_CLIP = ("open_clip_torch", "transformers")  # the second for text towers of Hugging Face
_WITHOUT_DOMAINS: tuple[Scenario, ...] = ("class", "task", "online")
_WITHOUT_TASK_LABELS: tuple[Scenario, ...] = ("class", "domain", "online")


@hookimpl
def peftcl_backbones() -> Iterable[Component]:
    """Frozen vision transformers, some with a text side."""
    return (
        Component(
            "timm_vit",
            f"{_MODELS}.backbones.timm_vit:create_backbone",
            source="any timm VisionTransformer; Dosovitskiy et al., arXiv 2010.11929",
        ),
        Component(
            "vit_glyph",
            f"{_MODELS}.backbones.glyph:vit_glyph",
            source="bundled small ViT; Dosovitskiy et al., arXiv 2010.11929",
        ),
        Component(
            "open_clip",
            f"{_MODELS}.backbones.open_clip:create_open_clip",
            source="any open_clip model with a ViT; CLIP, Radford et al., arXiv 2103.00020",
            libraries=_OPEN_CLIP,
        ),
        Component(
            "dual_encoder",
            f"{_MODELS}.backbones.dual_encoder:create_dual_encoder",
            source="image and text towers trained apart; LiT, Zhai et al., arXiv 2111.07991",
            libraries=_OPEN_CLIP,
        ),
    )


@hookimpl
def peftcl_modules() -> Iterable[Component]:
    """PEFT modules."""
    return (
        Component(
            "adapter",
            f"{_MODELS}.modules.adapter:build_adapters",
            source="AdaptFormer, arXiv 2205.13535; channel branch of NTK-CL, arXiv 2407.17120",
        ),
        Component(
            "attention_adapter",
            f"{_MODELS}.modules.attention_adapter:build_attention_adapters",
            source="adapters of PEGP, arXiv 2405.13383; LAE, ICCV 2023",
        ),
        Component(
            "frozen",
            f"{_MODELS}.branch:build_frozen",
            source="linear probing; Alain and Bengio, arXiv 1610.01644",
        ),
        Component(
            "full",
            f"{_MODELS}.modules.full:build_full",
            source="full fine-tuning of all blocks, in a copy",
        ),
        Component(
            "linear_adapter",
            f"{_MODELS}.modules.linear_adapter:build_linear_adapter",
            source="adapter behind CLIP's image tower in PEGP, arXiv 2405.13383",
        ),
        Component(
            "lora", f"{_MODELS}.modules.lora:build_lora", source="LoRA, arXiv 2106.09685; peft"
        ),
        Component(
            "peft_tuner",
            f"{_MODELS}.modules.peft_tuner:build_peft_tuner",
            source="any tuner of linear layers in peft",
        ),
        Component(
            "prefix",
            f"{_MODELS}.modules.prefix:build_prefix",
            source="prefix tuning, arXiv 2101.00190",
        ),
        Component(
            "prompt",
            f"{_MODELS}.modules.prompt:build_prompt",
            source="visual prompt tuning, arXiv 2203.12119",
        ),
        Component(
            "patch_prompt",
            f"{_MODELS}.modules.patch_prompt:build_patch_prompts",
            source="patch branch of NTK-CL, arXiv 2407.17120",
        ),
    )


@hookimpl
def peftcl_heads() -> Iterable[Component]:
    """Classifiers."""
    heads = f"{_MODELS}.heads"
    return (
        Component("linear", f"{heads}.linear:build_linear", source="one trained linear map"),
        Component(
            "cosine",
            f"{heads}.cosine:build_cosine",
            source="LUCIR, CVPR 2019; proxies of NTK-CL, arXiv 2407.17120",
        ),
        Component(
            "prototypes",
            f"{heads}.prototypes:build_prototypes",
            source="class means: SimpleCIL, arXiv 2303.07338; NTK-CL, arXiv 2407.17120",
        ),
        Component(
            "lda",
            f"{heads}.lda:build_lda",
            source="Deep SLDA, CVPR-W 2020; shrinkage: OAS, arXiv 0907.4698",
        ),
        Component(
            "gaussian",
            f"{heads}.gaussian:build_gaussian",
            source="regularised discriminant analysis, Friedman, JASA 1989",
        ),
        Component(
            "ridge",
            f"{heads}.ridge:build_ridge",
            source="ridge regression; penalties after GCV, Golub et al., Technometrics 1979",
        ),
        Component(
            "random_ridge",
            f"{heads}.random_ridge:build_random_ridge",
            source="RanPAC, arXiv 2307.02251; penalty by GCV, Golub et al., Technometrics 1979",
        ),
        Component(
            "zero_shot",
            f"{heads}.zero_shot:build_zero_shot",
            source="cosines to texts of class names; CLIP, Radford et al., arXiv 2103.00020",
        ),
        Component(
            "zero_shot_ridge",
            f"{heads}.zero_shot_ridge:build_zero_shot_ridge",
            source="ridge regression beside zero-shot logits; after RAIL, arXiv 2406.18868",
        ),
        Component(
            "text_context",
            f"{heads}.text_context:build_text_context",
            source="CoOp, arXiv 2109.01134; a context an experience: PEGP, arXiv 2405.13383",
        ),
        Component(
            "kernel_ridge",
            f"{heads}.kernel_ridge:build_kernel_ridge",
            source="random Fourier features, NeurIPS 2007; exact: Saunders et al., ICML 1998",
        ),
    )


@hookimpl
def peftcl_benchmarks() -> Iterable[Component]:
    """Streams of experiences."""
    classic = f"{_BENCHMARKS}.sources.classic"
    return (
        Component(
            "digits",
            f"{_BENCHMARKS}.sources.digits:digits",
            source="scikit-learn load_digits; Alpaydin and Kaynak, UCI 1998",
        ),
        Component(
            "image_folder",
            f"{_BENCHMARKS}.sources.image_folder:image_folder",
            source="a folder of images",
        ),
        Component(
            "image_list",
            f"{_BENCHMARKS}.sources.image_list:image_list",
            source="lists of images; DomainNet, arXiv 1812.01754",
        ),
        Component(
            "hf_dataset",
            f"{_BENCHMARKS}.sources.hf_dataset:hf_dataset",
            source="data sets of the Hugging Face Hub, and Parquet files",
            libraries=("datasets",),
        ),
        Component(
            "image_text",
            f"{_BENCHMARKS}.sources.image_text:image_text",
            source="captioned images, such as Flickr8k (Hodosh et al., JAIR 2013)",
            scenarios=("task",),
        ),
        Component("core50", f"{_BENCHMARKS}.sources.core50:core50", source="arXiv 1705.03550"),
        Component(
            "five_datasets",
            f"{_BENCHMARKS}.sources.five_datasets:five_datasets",
            source="CIFAR-10, MNIST, Fashion-MNIST, SVHN, notMNIST; Ebrahimi et al., arXiv "
            "2003.09553",
            scenarios=_WITHOUT_DOMAINS,
        ),
        *(
            Component(name, f"{classic}:{name}", source, scenarios=_WITHOUT_DOMAINS)
            for name, source in (
                ("mnist", "LeCun et al., Proc. IEEE 1998"),
                ("fashion_mnist", "arXiv 1708.07747"),
                ("cifar10", "Krizhevsky, technical report 2009"),
                ("cifar100", "Krizhevsky, technical report 2009"),
                ("tiny_imagenet", "Stanford CS231n"),
                ("cub200", "Wah et al., CNS-TR-2011-001"),
                ("oxford_pets", "Parkhi et al., Cats and Dogs, CVPR 2012"),
                ("eurosat", "arXiv 1709.00029"),
                ("svhn", "Netzer et al., NIPS workshop 2011"),
            )
        ),
    )


@hookimpl
def peftcl_strategies() -> Iterable[Component]:
    """Methods."""
    tuned = Costs(per_class="D + 1", once="P")
    return (
        Component(
            "ntk_cl",
            f"{_TRAINING}.ntk_cl:build_ntk_cl",
            source="arXiv 2407.17120",
            costs=Costs(step="4", test="4", per_class="4*D", once="2*P - 4*D^2 - 2*D"),
        ),
        Component(
            "pegp",
            f"{_TRAINING}.pegp:build_pegp",
            source="arXiv 2405.13383",
            own_module=("peft", "r", "length", "blocks"),
            costs=Costs(
                step="2", per_class="D + 1", once="P + L*(D^2 + r^2)", at_most=("step", "once")
            ),
        ),
        Component(
            "naive",
            f"{_TRAINING}.naive:build_naive",
            source="fine-tuning in turn; Avalanche Naive",
            costs=tuned,
        ),
        Component(
            "nearest_class_mean",
            f"{_TRAINING}.nearest_class_mean:build_nearest_class_mean",
            source="SimpleCIL, arXiv 2303.07338",
            costs=Costs(step="0", per_class="D"),
        ),
        Component(
            "closed_form",
            f"{_TRAINING}.closed_form:build_closed_form",
            source="a fitted head on frozen features; RanPAC, arXiv 2307.02251, has one",
            costs=Costs(step="0", per_class="2*D", once="D^2"),
        ),
        Component(
            "contrastive",
            f"{_TRAINING}.contrastive:build_contrastive",
            source="images and their captions; CLIP, Radford et al., arXiv 2103.00020",
            scenarios=("task",),
            costs=Costs(once="P"),
        ),
        Component(
            "joint",
            f"{_TRAINING}.joint:build_joint",
            source="Avalanche JointTraining",
            costs=tuned,
        ),
    )


@hookimpl
def peftcl_strategy_plugins() -> Iterable[Component]:
    """Pieces that any strategy can use, and Avalanche's own plugins."""
    plugins, host = f"{_TRAINING}.plugins", f"{_TRAINING}.plugins.host"
    return (
        Component(
            "drift_compensation",
            f"{plugins}.drift_compensation:build_drift_compensation",
            source="linear drift maps; SLDC, arXiv 2511.09926; HopDC, arXiv 2602.00144; SDC, CVPR "
            "2020",
        ),
        Component(
            "feature_replay",
            f"{plugins}.feature_replay:build_feature_replay",
            source="classifier alignment of SLCA, ICCV 2023; SLCA++, arXiv 2408.08295",
        ),
        Component(
            "gradient_projection",
            f"{plugins}.gradient_projection:build_gradient_projection",
            source="gradient projection of PEGP, arXiv 2405.13383; GPM, ICLR 2021",
        ),
        Component(
            "margin",
            f"{plugins}.margin:build_margin",
            source="margin of CosFace, CVPR 2018",
        ),
        Component(
            "retention",
            f"{plugins}.retention:build_retention",
            source="retention term of NTK-CL, arXiv 2407.17120",
        ),
        Component(
            "running_mean",
            f"{plugins}.running_mean:RunningMeanPlugin",
            source="adaptive EMA of NTK-CL, arXiv 2407.17120",
        ),
        Component("replay", f"{host}:replay", source="arXiv 1902.10486; Avalanche ReplayPlugin"),
        Component(
            "ewc",
            f"{host}:ewc",
            source="arXiv 1612.00796; Avalanche EWCPlugin",
            scenarios=_WITHOUT_TASK_LABELS,
        ),
        Component(
            "lwf",
            f"{host}:lwf",
            source="arXiv 1606.09282; Avalanche LwFPlugin",
            scenarios=_WITHOUT_TASK_LABELS,
        ),
    )


@hookimpl
def peftcl_metrics() -> Iterable[Component]:
    """Plugin metrics."""
    evaluation = "avalanche_peftcl.evaluation"
    return (
        Component(
            "accuracy_matrix",
            f"{evaluation}:accuracy_matrix_metrics",
            source="GEM, arXiv 1706.08840; Chaudhry et al., arXiv 1801.10112",
        ),
        Component(
            "any_time",
            f"{evaluation}:any_time_metrics",
            source="stability gap: De Lange et al., ICLR 2023; area: Koh et al., ICLR 2022",
        ),
        Component("cost", f"{evaluation}:cost_metrics", source="seconds, memory, parameters"),
        Component(
            "ntk",
            f"{evaluation}:ntk_metrics",
            source="tangent kernel and predicted forgetting: arXiv 2407.17120, 2006.11942",
        ),
        Component(
            "released_accuracy",
            f"{evaluation}:released_accuracy_metrics",
            source="the task leaks, for published tables: code of arXiv 2405.13383 on CLIP",
            scenarios=("class", "online"),
        ),
        Component(
            "retrieval",
            f"{evaluation}:retrieval_metrics",
            source="recall: CLIP, arXiv 2103.00020; gap: Liang et al., NeurIPS 2022",
        ),
        Component(
            "wrong_matches",
            f"{evaluation}:wrong_matches_metrics",
            source="own protocol, for the question of PEGP, arXiv 2405.13383",
        ),
        Component(
            "zero_shot_retention",
            f"{evaluation}:zero_shot_retention_metrics",
            source="CLIP, arXiv 2103.00020; as a measure of forgetting: ZSCL, ICCV 2023",
        ),
        Component("loss", f"{evaluation}.host:loss", source="Avalanche loss_metrics"),
        Component("accuracy", f"{evaluation}.host:accuracy", source="Avalanche accuracy_metrics"),
    )


@hookimpl
def peftcl_loggers() -> Iterable[Component]:
    """Avalanche's loggers."""
    logging = "avalanche_peftcl.logging"
    return (
        Component("tensorboard", f"{logging}:tensorboard", source="Avalanche TensorboardLogger"),
        Component("wandb", f"{logging}:wandb", source="Avalanche WandBLogger"),
    )
