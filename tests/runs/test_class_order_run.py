"""A run whose class order follows from its network: what was asked for, and what came of it."""

import numpy as np
import pytest

from avalanche_peftcl.benchmarks import class_means, digits, eval_transform, order_by_likeness
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.models import vit_glyph
from avalanche_peftcl.runs.run import run

SIZES = [4, 3, 3]


@pytest.mark.parametrize(("order", "seed"), [("hardest", 0), ("easiest", 1)])
def test_the_record_says_the_order_by_name_and_class_by_class(order, seed, tmp_path):
    backbone = vit_glyph(img_size=16)
    whole = digits(input_config=backbone.input_config, n_experiences=1, class_order="natural")
    images = whole.contents.train
    transform = eval_transform(backbone.input_config)
    means = class_means(backbone, images, np.array(images.targets), transform=transform)
    wanted = order_by_likeness(means, SIZES, difficulty=order)

    config = RunConfig.model_validate(
        {
            "output": tmp_path,
            "seed": seed,
            "num_threads": 1,
            "backbone": {"name": "vit_glyph", "img_size": 16},
            "benchmark": {
                "name": "digits",
                "classes_per_experience": SIZES,
                "class_order": order,
                "train_per_class": 2,
            },
            "strategy": "nearest_class_mean",
        }
    )
    record = run(config).record
    assert record.config.benchmark.options["class_order"] == order
    assert record.protocol.class_order == wanted
    names = [name for each in record.protocol.experiences for name in each.class_names]
    assert names == [str(c) for c in wanted]
