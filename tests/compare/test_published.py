import copy
import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

import avalanche_peftcl
from avalanche_peftcl.compare.published import Published, published, quoted_beside

FILE = Path(avalanche_peftcl.__file__).parent / "assets" / "published.json"


@pytest.fixture(scope="module")
def book():
    return published()


def results(book, table):
    (found,) = [t for t in book.tables if t.id == table]
    return {result.method: result.values for result in found.results}


def test_every_table_of_both_papers_is_there(book):
    assert Counter(table.id.split("-")[0] for table in book.tables) == {
        "ntk_cl": 4,
        "pegp": 7,
        "soft_transformers": 3,
        "pgp": 2,
        "vpt_nsp": 1,
    }
    numbers = {
        table.id: sum(len(values) for result in table.results for values in result.values.values())
        for table in book.tables
    }
    assert numbers == {
        "ntk_cl-2": 72,  # 12 methods, 3 data sets, average and last
        "ntk_cl-3": 72,
        "ntk_cl-4": 48,  # 4 methods, 6 data sets
        "ntk_cl-5": 48,
        "pegp-2": 104,  # 26 methods, 2 data sets, accuracy and forgetting
        "pegp-curves": 8,
        "pegp-3": 12,
        "pegp-4": 32,  # 9 methods, 2 data sets; two without forgetting
        "pegp-5": 20,
        "pegp-6": 48,  # 8 modules, 3 ways to train them
        "pegp-log": 8,
        "soft_transformers-quoted": 28,
        "soft_transformers-class": 4,
        "soft_transformers-task": 4,
        "pgp-issue_1": 2,
        "vpt_nsp-5": 48,  # 6 methods, 4 streams
        "pgp-review": 3,
    }


def test_some_numbers_are_as_printed(book):
    assert results(book, "ntk_cl-2")["NTK-CL"] == {
        "cifar100-10": {"average": [93.76, 0.35], "last": [90.27, 0.20]},
        "imagenet_r-10": {"average": [82.77, 0.66], "last": [77.17, 0.19]},
        "imagenet_a-10": {"average": [66.56, 1.53], "last": [58.54, 0.91]},
    }
    assert results(book, "ntk_cl-3")["CPrompt"]["imagenet_a-10"]["last"] == [46.99, 17.03]
    assert results(book, "ntk_cl-5")["NTK-CL"]["kvasir-4"]["average"] == [91.88, 1.15]
    assert results(book, "pegp-2")["PEGP LoRA-10"]["imagenet_r-10"] == {
        "avg_acc": [70.54],
        "forgetting": [6.04],
    }
    assert results(book, "pegp-4")["AttriCLIP"] == {
        "cifar100-10": {"avg_acc": [81.4]},
        "imagenet100-10": {"avg_acc": [83.3]},
    }
    assert results(book, "pegp-6")["LAE Prefix-20"]["domainnet-5"]["avg_acc"] == [65.8]


def test_the_logs_give_the_total_that_the_table_prints(book):
    log = results(book, "pegp-log")["CLIP-PEGP adapter"]
    printed = results(book, "pegp-4")["CLIP-PEGP adapter"]
    for stream in ("cifar100-10", "imagenet100-10"):
        final, diagonal = log[stream]["final_row"], log[stream]["diagonal"]
        assert log[stream]["total"] == printed[stream]["avg_acc"] == log[stream]["totals"][-1:]
        assert sum(final) / 10 == pytest.approx(log[stream]["total"][0], abs=0.01)
        drops = [max(0, d - f) for d, f in zip(diagonal, final, strict=True)][:-1]
        assert [sum(drops) / 9] == pytest.approx(printed[stream]["clipped_forgetting"], abs=0.005)


def test_every_number_has_source_definition_and_meaning_of_its_spread(book):
    for table in book.tables:
        assert table.source
        assert table.read_from
        for result in table.results:
            for stream, values in result.values.items():
                assert stream in book.streams
                for metric, numbers in values.items():
                    assert book.metrics[metric].definition
                    assert len(numbers) == 1 or table.spread or not book.metrics[metric].column
    used = {
        key
        for table in book.tables
        for result in table.results
        for values in result.values.values()
        for key in values
    }
    assert used == set(book.metrics)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("tables", 0, "results", 0, "values", "cifar100-10", "last"), [101.0, 1.0], "percent"),
        (("tables", 0, "results", 0, "values", "cifar100-10", "last"), [90.0], "a spread"),
        (("tables", 0, "results", 0, "values", "cifar100-10", "lost"), [90.0], "unknown metric"),
        (("tables", 0, "results", 0, "values", "cifar"), {}, "unknown stream"),
        (("tables", 0, "place"), "", "at least 1 character"),
        (("tables", 0, "scenario"), "classes", "'class'"),
        (("streams", "oxford_pets-7", "classes"), [7, 5], "classes are not of 7 experiences"),
        (("streams", "cifar100-10", "colour"), "red", "Extra inputs"),
    ],
    ids=["range", "spread", "metric", "stream", "empty", "scenario", "classes", "extra"],
)
def test_a_wrong_file_is_refused(path, value, said):
    content = json.loads(FILE.read_text())
    Published.model_validate(copy.deepcopy(content))
    *above, key = path
    here = content
    for step in above:
        here = here[step]
    here[key] = value
    with pytest.raises(ValidationError, match=said):
        Published.model_validate(content)


def of_paper(order, tag="augreg_in21k"):
    """Return the changes that give a record weights that papers use, and a class order."""
    model = f"vit_base_patch16_224.{tag}"
    backbone = {"name": "timm_vit", "model_name": model, "pretrained": True}
    return {"config.backbone": backbone, "protocol.class_order": order}


def of_stream(name, scenario, sizes, root=None, paper="ntk_cl"):
    """Return the changes that give a record another stream, with the protocol of a paper."""
    order = list(range(sum(sizes)))
    names = [[str(i)] * size for i, size in enumerate(sizes)]
    total = len(sizes)
    return {
        "config.benchmark.name": name,
        "config.benchmark.root": root,
        **(of_paper(order, "orig_in21k") if paper == "pegp" else of_paper(order[::-1])),
        "protocol.scenario": scenario,
        "protocol.experiences": [
            {"classes": list(range(len(n))), "class_names": n, "train_images": 9, "test_images": 9}
            for n in names
        ],
        "experiences.total": total,
        "accuracy.accuracy_curve": [0.5] * total,
        "accuracy_matrix": [[0.5] * total] * total,
    }


STATED_LESS = "soft_transformers-quoted vpt_nsp-5"  # neither weights nor class order


@pytest.mark.parametrize(
    ("stream", "tables", "methods"),
    [
        (("cifar100", "class", [10] * 10), f"ntk_cl-2 {STATED_LESS}", 12 + 4 + 6),
        (("cifar100", "class", [10] * 10, None, "pegp"), f"pegp-2 {STATED_LESS}", 26 + 4 + 6),
        (("cifar100", "online", [10] * 10, None, "pegp"), "pegp-3", 6),
        (("cifar100", "online", [10] * 10), "", 0),
        (("cifar100", "task", [10] * 10, None, "pegp"), "", 0),  # those are of CLIP
        (("cifar100", "class", [5] * 20), STATED_LESS, 4 + 6),
        (("cifar100", "class", [20] * 5), "", 0),
        (("image_folder", "class", [20] * 10, "/x/imagenet-r"), "ntk_cl-2", None),
        (("image_folder", "class", [20] * 10, "/x/ImageNet_A/"), "ntk_cl-2", 12),
        (("image_folder", "class", [69] * 5, "domainnet", "pegp"), "pegp-6", 24),
        (("image_folder", "class", [7, 5, 5, 5, 5, 5, 5], "pets"), "ntk_cl-4", 4),
        (("image_folder", "class", [5, 5, 5, 5, 5, 5, 7], "pets"), "", 0),
        (("imagenet_r", "domain", [20] * 10), "", 0),
    ],
    ids=lambda value: "-".join(map(str, value[:2])) if isinstance(value, tuple) else None,
)
def test_numbers_are_quoted_beside_the_same_protocol(run, stream, tables, methods):
    quoted = quoted_beside([run("a", changes=of_stream(*stream))])
    found = {one.table.id for one in quoted}
    assert found >= set(tables.split())
    assert methods is None or (found == set(tables.split()) and len(quoted) == methods)


@pytest.mark.parametrize(
    ("changes", "tables"),
    [
        (of_paper([1, 0], "augreg_in21k_ft_in1k"), f"ntk_cl-3 {STATED_LESS}"),
        (
            of_paper([1, 0])
            | {"config.backbone.model_name": "vit_base_patch16_224_in21k"}
            | {"model_name": "vit_base_patch16_224.augreg_in21k"},
            f"ntk_cl-2 {STATED_LESS}",
        ),
        ({"config.backbone": {"name": "vit_glyph"}}, STATED_LESS),
        (of_paper([1, 0]) | {"config.backbone.pretrained": False}, STATED_LESS),
        ({"config.benchmark.train_per_class": 10}, ""),
        ({"config.benchmark.test_per_class": 10}, ""),
        ({"config.benchmark.validation_per_class": 5}, ""),
        ({"protocol.tested_on": "held-out training images"}, ""),
    ],
    ids=[
        "ft_in1k",
        "given-up-name",
        "glyph",
        "random",
        "subset",
        "few-tests",
        "held-out",
        "tested-on",
    ],
)
def test_other_weights_and_images_are_another_protocol(run, changes, tables):
    stream = of_stream("cifar100", "class", [10] * 10)
    quoted = quoted_beside([run("a", changes=stream | changes)])
    assert {one.table.id for one in quoted} == set(tables.split())


def test_a_quoted_number_is_a_fraction_with_its_definition(run):
    quoted = [
        one
        for paper in ("ntk_cl", "pegp")
        for one in quoted_beside(
            [run(paper, changes=of_stream("cifar100", "class", [10] * 10, None, paper))]
        )
    ]
    (ntk,) = [one for one in quoted if (one.method, one.table.id) == ("NTK-CL", "ntk_cl-2")]
    assert ntk.values["last_accuracy"] == pytest.approx((0.9027, 0.0020))
    assert ntk.definitions["last_accuracy"].name == "A_T"
    (pegp,) = [one for one in quoted if (one.method, one.table.id) == ("PEGP LoRA-5", "pegp-2")]
    assert pegp.values == {
        "last_accuracy": pytest.approx((0.8502, None)),
        "forgetting": pytest.approx((0.0654, None)),
    }
