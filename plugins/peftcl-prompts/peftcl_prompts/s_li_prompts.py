"""S-liPrompts: a prompt of images and one of texts a domain, found by the nearest centroid."""

import functools

from avalanche_peftcl import takes
from avalanche_peftcl.models import Backbone, PEFTModel, build_text_context, exportable
from avalanche_peftcl.training import PEFTTemplate
from peftcl_prompts.domain_texts import DomainTexts
from peftcl_prompts.ranges import InitBound, Width
from peftcl_prompts.s_prompts import (
    CentroidPlugin,
    Distance,
    DomainPromptBranch,
    DomainPromptModel,
    SPromptsOptions,
    build_domain_prompts,
)
from peftcl_prompts.tuning import prompt_strategy


@exportable
class DomainTextModel(DomainPromptModel):
    """A pass with the prompt of one domain, and the texts of the same domain.

    Args:
        backbone: The frozen network.
        branch: The prompts.
        text_width: See :class:`.DomainTexts`.
        n_context: See there.
        init_std: See there.
    """

    head: DomainTexts

    def __init__(
        self,
        backbone: Backbone,
        branch: DomainPromptBranch,
        *,
        text_width: int,
        n_context: int,
        init_std: float,
    ) -> None:
        head = functools.partial(
            DomainTexts, text_width=text_width, n_context=n_context, init_std=init_std
        )
        PEFTModel.__init__(self, backbone, branch, head)


@takes(SPromptsOptions)
def build_s_li_prompts(
    *,
    backbone: Backbone,
    class_words: dict[str, str] | None = None,
    n_context: Width = 16,
    init_std: InitBound = 0.02,
    length: Width = 10,
    centroids: Width = 5,
    distance: Distance = "l1",
    anneal: bool | None = None,
    options: SPromptsOptions,
) -> PEFTTemplate:
    """Build S-liPrompts: each domain has a prompt in both towers, and nothing is shared.

    Serves scenario ``domain``, on a backbone with a text side and a benchmark that tells the names
    of its classes. Grows on demand: an experience adds a prompt of images, the embeddings of its
    class names behind its own context, and centroids of its frozen features, by which a test image
    finds its domain. One pass an image in training, two in prediction; after an experience its
    images are read once more, in two passes. The text side runs in each step for the classes at
    hand.

    Args:
        backbone: The frozen network of images and texts.
        class_words: What each class is called in the texts, see
            :func:`~avalanche_peftcl.models.build_text_context`.
        n_context: Vectors in front of a name, shared by the classes of a domain.
        init_std: Standard deviation of a new context.
        length: Tokens of a prompt of images.
        centroids: Of an experience.
        distance: By which the nearest is found: ``"l1"`` as released, ``"l2"`` as k-means has it.
        anneal: Whether the learning rate falls to 0 as a cosine in each experience; ``None`` is yes
            unless a plugin schedules it.
        options: See :func:`.build_s_prompts`.

    Raises:
        ConfigError: If the backbone has no text side whose names may stand behind vectors.

    Source:
        Wang, Huang and Hong, NeurIPS 2022, arXiv 2207.12819 (S-liPrompts); released code
        iamwangyabin/S-Prompts a26e822.
        Differs: see :func:`.build_s_prompts`; how many vectors the release has was not read, 16 is
        CoOp's number. Of a domain that ended the embeddings of its texts are kept instead of its
        context, which give the same logits.
    """
    branch = build_domain_prompts(backbone=backbone, length=length, distance=distance)
    checked = build_text_context(
        in_features=branch.out_features(backbone) - 1,
        backbone=backbone,
        class_words=class_words,
        n_context=n_context,
        init_std=init_std,
    )
    width = checked.context.shape[1]
    model = DomainTextModel(
        backbone, branch, text_width=width, n_context=n_context, init_std=init_std
    )
    model.head.texts = checked.texts
    model.head.current.scale.copy_(checked.scale)
    own = [CentroidPlugin(branch, count=centroids)]
    return prompt_strategy(model, optimizer="sgd", anneal=anneal, options=options, own_plugins=own)
