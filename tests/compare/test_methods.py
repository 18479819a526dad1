import pytest

from avalanche_peftcl.compare.methods import QUANTITIES, Method, gather
from avalanche_peftcl.errors import ConfigError

BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


def labels_of(runs):
    return [method.label for method in gather(runs)]


def test_seeds_of_one_configuration_are_one_method(run):
    runs = [
        run("a", seed=2),
        run(
            "b",
            seed=0,
            changes={
                "config.device": "cuda",
                "config.num_threads": 4,
                "config.num_workers": 8,
                "config.checkpoint_every": 4,
                "config.loggers": [{"name": "tensorboard"}],
                "config.metrics": [{"name": "loss"}],
                "config.benchmark.class_order": [1, 0],
                "config.backbone.checkpoint": "weights.pt",
            },
        ),
    ]
    (method,) = gather(runs)
    assert method.label == "naive"
    assert method.seeds == (0, 2)
    assert [one.folder.name for one in method.runs] == ["b", "a"]


def test_a_label_tells_as_few_options_as_tell_methods_apart(run):
    runs = [
        run("a", {"name": "naive", "lr": 0.1, "train_epochs": 3}),
        run("b", {"name": "ntk_cl", "recipe": "released", "lr": 0.03, "anneal": True}),
        run("c", {"name": "ntk_cl", "recipe": "corrected", "lr": 0.03, "anneal": False}),
        run("d", {"name": "ntk_cl", "recipe": "corrected", "lr": 1e-5, "anneal": False}),
    ]
    assert labels_of(runs) == [
        "naive",
        "ntk_cl recipe=released",
        "ntk_cl recipe=corrected lr=0.03",
        "ntk_cl recipe=corrected lr=1e-05",
    ]
    assert labels_of(runs[:1] + runs[2:3]) == ["naive", "ntk_cl"]
    assert [method.untold for method in gather(runs)] == [
        (),
        ("lr=0.03", "anneal=true"),
        ("anneal=false",),
        ("anneal=false",),
    ]
    assert gather(runs)[2].settings == {
        "strategy": "ntk_cl",
        "strategy.recipe": "corrected",
        "strategy.lr": 0.03,
        "strategy.anneal": False,
    }


def test_an_option_that_tells_all_apart_alone_is_told_alone(run):
    grid = [(0.1, 1), (0.1, 2), (0.2, 3)]
    runs = [run(f"r{e}", {"name": "x", "lr": lr, "epochs": e}) for lr, e in grid]
    assert labels_of(runs) == ["x epochs=1", "x epochs=2", "x epochs=3"]


def test_a_label_tells_module_plugins_and_backbone(run):
    lora = {"config.module": {"name": "lora", "r": 4}}
    runs = [
        run("a"),
        run("b", changes=lora),
        run("c", changes={"config.module": {"name": "lora", "r": 8}}),
        run("d", changes={"config.plugins": [{"name": "replay", "mem_size": 200}]}),
        run("e", changes={"config.backbone": {"name": "timm_vit", "depth": 2}}),
        run("f", "ntk_cl", changes=lora),
    ]
    assert labels_of(runs) == [
        "naive vit_glyph",
        "naive lora vit_glyph r=4",
        "naive lora vit_glyph r=8",
        "naive replay vit_glyph",
        "naive timm_vit",
        "ntk_cl lora vit_glyph",
    ]


def test_of_plugins_the_options_that_differ_are_told(run):
    def plugins(size, seed):
        replay = {"name": "replay", "mem_size": size, "seed": 0}
        return {"config.plugins": [{"name": "ewc", "seed": seed}, replay, replay]}

    runs = [run("a", changes=plugins(100, 0)), run("b", changes=plugins(200, 0)), run("c")]
    several = "plugins.replay.mem_size"  # the second of that name has the option too
    assert labels_of(runs) == [
        f"naive ewc,replay,replay {several}=100",
        f"naive ewc,replay,replay {several}=200",
        "naive",
    ]
    runs = [run("d", changes=plugins(100, 0)), run("e", changes=plugins(100, 1))]
    assert labels_of(runs) == ["naive seed=0", "naive seed=1"]


def test_a_name_that_two_kinds_have_is_told_with_its_kind(run):
    runs = [
        run("a", changes={"config.module": {"name": "linear"}}),
        run("b", changes={"config.head": {"name": "linear"}}),
        run("c", changes={"config.head": {"name": "ridge"}}),
    ]
    assert labels_of(runs) == ["naive module=linear", "naive head=linear", "naive ridge"]


def test_an_option_that_older_records_do_not_have_is_that_option_unset(run):
    assert labels_of([run("a", seed=0), run("b", {"name": "naive", "new": None}, seed=1)]) == [
        "naive"
    ]


def test_options_without_effect_that_older_records_have_make_no_other_method(run):
    lora = {"config.module": {"name": "lora", "r": 4}}
    old = run("a", {"name": "pegp", "lr": 0.1, "peft": "adapter", "r": 5}, seed=0, changes=lora)
    new = run("b", {"name": "pegp", "lr": 0.1}, seed=1, changes=lora)
    assert labels_of([old, new]) == ["pegp"]
    assert labels_of([run("c", {"name": "pegp", "r": 5}), run("d", {"name": "pegp", "r": 8})]) == [
        "pegp r=5",
        "pegp r=8",
    ]


def test_a_value_by_its_earlier_name_makes_no_other_method(run):
    old, new = ({"name": "pegp", "peft": name} for name in ("adapter", "attention_adapter"))
    assert labels_of([run("a", old, seed=0), run("b", new, seed=1)]) == ["pegp"]
    other = run("c", {"name": "pegp", "peft": "lora"})
    assert labels_of([run("d", old), other]) == ["pegp peft=attention_adapter", "pegp peft=lora"]


def test_image_folders_are_told_by_the_name_of_their_root(run):
    def root(path):
        return {"config.benchmark": {"name": "image_folder", "root": path, "seed": 0}}

    runs = [
        run("a", seed=0, changes=root("/data/cifar10/")),
        run("b", seed=1, changes=root("../shared/cifar10")),
        run("c", seed=1, changes=root("/data/pacs")),
    ]
    assert labels_of(runs) == ["naive cifar10", "naive pacs"]


def test_a_class_order_by_name_is_of_the_method(run):
    runs = [run("a"), run("b", seed=1, changes={"config.benchmark.class_order": "natural"})]
    assert labels_of(runs) == ["naive", "naive class_order=natural"]


def test_what_only_the_protocol_tells_is_in_the_label_last(run):
    other = "c" * 64
    runs = [run("a"), run("b", changes={"weights_sha256": other})]
    assert labels_of(runs) == [
        "naive weights of the backbone=abababababab...",
        "naive weights of the backbone=cccccccccccc...",
    ]


def test_the_same_name_of_two_packages_is_two_methods(run):
    runs = [run("a"), run("b", changes={"components.2.provider": "another"})]
    assert labels_of(runs) == [
        "naive provider.strategy=avalanche-peftcl",
        "naive provider.strategy=another",
    ]
    spelt = run("c", seed=1, changes={"config.strategy.name": "avalanche-peftcl/naive"})
    assert labels_of([runs[0], spelt]) == ["naive"]


def test_labels_that_shorten_to_the_same_are_numbered(run):
    runs = [run("a", {"name": "x", "o": "y" * 50}), run("b", {"name": "x", "o": "y" * 51})]
    first, second = labels_of(runs)
    assert (first, second) == (f"x o={'y' * 37}... (1)", f"x o={'y' * 37}... (2)")


def test_one_method_has_one_run_a_seed(run):
    runs = [run("a", seed=1), run("b", seed=1), run("c", seed=0)]
    with pytest.raises(ConfigError) as caught:
        gather(runs)
    assert str(caught.value) == (
        "the same method was run more than once with the same seed, and only one can count; name "
        "the folders to compare, or move the others away:\n"
        f"  seed 1: {runs[0].folder} and {runs[1].folder}"
    )


def test_numbers_of_a_method(run):
    runs = tuple(run(f"r{seed}", seed=seed, start=0.9, drop=0.1) for seed in (0, 1))
    (method,) = gather(runs)
    last = method.estimate(BY_KEY["last_accuracy"])  # 0.8 and 0.81
    assert last.mean == pytest.approx(0.805)
    assert last.standard_deviation == pytest.approx(0.01 / 2**0.5)
    assert method.estimate(BY_KEY["training_seconds"]).mean == pytest.approx((6 + 9) / 2)
    assert method.estimate(BY_KEY["trainable_parameters"]).mean == 1000
    assert method.by_seed(BY_KEY["forgetting"]) == pytest.approx({0: 0.15, 1: 0.15})
    assert [e.mean for e in method.curve()] == pytest.approx([0.905, 0.855, 0.805])
    drops = method.forgetting_by_experience()
    assert [e.mean for e in drops] == pytest.approx([0.2, 0.1])
    matrix = method.matrix()
    assert matrix[0][1] is None
    assert matrix[2][0].mean == pytest.approx(0.705)


def test_a_number_that_a_run_lacks_is_undefined_for_the_method(run):
    runs = (run("a", seed=0), run("b", seed=1, changes={"accuracy.forgetting": None}))
    method = Method("naive", runs)
    assert method.estimate(BY_KEY["forgetting"]) is None
    assert list(method.by_seed(BY_KEY["forgetting"])) == [0]
