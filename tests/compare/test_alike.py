import pytest

from avalanche_peftcl.compare.alike import protocol_differences, same_streams, shorten


def keys(runs):
    return [difference.title for difference in protocol_differences(runs)]


def test_one_protocol_has_no_differences(run):
    runs = [run("a", seed=0), run("b", "ntk_cl", seed=0), run("c", seed=1)]
    assert protocol_differences(runs) == ()
    assert same_streams(runs)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"config.benchmark.name": "cifar10"}, "data set"),
        ({"protocol.scenario": "task"}, "scenario"),
        ({"protocol.experiences.2.classes": [4]}, "classes"),
        ({"protocol.experiences.2.test_images": 9}, "test images"),
        ({"protocol.experiences.2.train_images": 9}, "training images"),
        ({"weights_sha256": "0" * 64}, "weights of the backbone"),
        ({"protocol.normalisation.crop_pct": 0.9}, "normalisation"),
        ({"protocol.task_label_at_test": True}, "task label at test"),
        ({"config.strategy.train_epochs": 9}, "training epochs"),
        ({"protocol.manifest_sha256": "2" * 64}, "hash of the manifest"),
        ({"protocol.split_sha256": "2" * 64}, "hash of the split"),
        ({"protocol.tested_on": "held-out training images"}, "tested on"),
        ({"config.benchmark.class_order": "natural"}, "ordering of the classes"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_each_point_is_seen_whatever_the_seed(run, changes, key):
    strategy = {"name": "naive", "train_epochs": 3}
    first = run(
        "a",
        strategy,
        0,
        changes={
            "protocol.manifest_sha256": "1" * 64,
            "protocol.split_sha256": "1" * 64,
            "protocol.tested_on": "test images",
        },
    )
    assert keys([first, run("b", strategy, 1, changes=changes)]) == [key]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"protocol.class_order": [5, 4, 3, 2, 1, 0]}, "class order, seed 4"),
        (
            {"protocol.class_order": None, "protocol.experiences.0.class_names": ["x", "y"]},
            "class names, seed 4",
        ),
        (
            {"protocol.experiences.0.test_images": 9, "protocol.experiences.1.test_images": 11},
            "test images of each experience, seed 4",
        ),
        ({"config.benchmark.seed": 7}, "seed of the benchmark, seed 4"),
    ],
    ids=["class-order", "class-names", "images", "benchmark-seed"],
)
def test_what_depends_on_the_seed_is_compared_between_runs_of_that_seed(run, changes, key):
    runs = [run("a", seed=4), run("b", seed=4, changes=changes), run("c", seed=5)]
    assert keys(runs) == [key]
    assert not same_streams(runs)
    assert keys([runs[1], runs[2]]) == []


def test_what_a_run_does_not_have_is_compared_with_nothing(run):
    runs = [
        run(
            "a",
            {"name": "naive", "train_epochs": 3},
            changes={"protocol.manifest_sha256": "1" * 64},
        ),
        run("b", "nearest_class_mean"),
    ]
    assert keys(runs) == []


def test_held_out_images_are_no_test_images_in_records_that_do_not_state_it(run):
    runs = [run(f"v{n}", changes={"config.benchmark.validation_per_class": n}) for n in (0, 5)]
    assert keys(runs) == ["tested on"]
    assert not same_streams(runs)


def test_a_list_and_the_order_of_domains_say_nothing_of_other_seeds(run):
    domain = {"protocol.scenario": "domain"}
    named = domain | {"config.benchmark.class_order": "natural"}
    assert keys([run("a", changes=domain), run("b", seed=1, changes=named)]) == []
    listed = {"config.benchmark.class_order": [0, 1, 2, 3, 4, 5]}
    assert keys([run("c"), run("d", seed=1, changes=listed)]) == []


def test_a_difference_names_values_and_runs(run):
    runs = [run(f"a{seed}", seed=seed) for seed in range(4)]
    runs.append(run("b", changes={"weights_sha256": "0" * 64}))
    (difference,) = protocol_differences(runs)
    a0, a1, b = runs[0].folder, runs[1].folder, runs[4].folder
    assert str(difference) == (
        f"weights of the backbone: abababababab... in {a0}, {a1} and 2 more; 000000000000... in {b}"
    )


def test_other_epochs_leave_streams_that_can_be_paired(run):
    runs = [run(f"e{n}", {"name": "naive", "train_epochs": n}) for n in (1, 2)]
    assert keys(runs) == ["training epochs"]
    assert same_streams(runs)


def test_values_are_shortened():
    assert (
        shorten(list(range(100))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16..."
    )
    assert shorten("x" * 64) == "x" * 57 + "..."
    assert shorten(None) == "None"


def test_a_folder_of_images_may_have_any_name_if_its_hash_is_known(run):
    folder = {"config.benchmark.name": "image_folder", "protocol.split_sha256": "1" * 64}
    runs = [run(n, changes=folder | {"config.benchmark.root": n}) for n in ("here", "there")]
    assert keys(runs) == []
    assert same_streams(runs)
    unknown = folder | {"protocol.split_sha256": None}
    runs = [run(n, changes=unknown | {"config.benchmark.root": n}) for n in ("old", "older")]
    assert keys(runs) == ["data set"]


def test_a_data_set_of_the_hub_has_its_own_name(run):
    def read(name):
        return {"config.benchmark": {"name": "hf_dataset", "dataset": name, "seed": 0}}

    runs = [run("a", changes=read("owner/one")), run("b", seed=1, changes=read("other/one"))]
    assert keys(runs) == []
    (difference,) = protocol_differences([runs[0], run("c", seed=1, changes=read("owner/two"))])
    assert [value for value, _ in difference.values] == ["one", "two"]


STEPS = {"cost.training_steps": [3, 3, 3]}
NONE_TAKEN = {"cost.training_steps": [0, 0, 0]}  # the conftest's records train no parameter


def test_budgets_are_compared(run):
    budget = {"config.budget": {"passes": 2.0}}
    ended, free = run("a", changes=STEPS | budget), run("b", changes=STEPS)
    (difference,) = protocol_differences([ended, free])
    assert difference.title == "budget of passes"
    assert [value for value, _ in difference.values] == ["2.0", "no limit"]
    assert same_streams([ended, free])
    assert keys([ended, run("c", "pegp", changes=STEPS | budget)]) == []
    other = {"config.budget": {"passes": 2.0, "seconds": 9.0, "stored_floats": 10}}
    told = ["budget of seconds", "budget of stored floats"]
    assert keys([ended, run("d", changes=STEPS | other)]) == told
    assert keys([ended, run("old", "ntk_cl")]) == ["budget of passes"]  # nobody counted its steps


def test_under_one_budget_methods_may_have_as_many_epochs_as_fit(run):
    few, many = ({"name": "naive", "train_epochs": n} for n in (2, 4))
    budget = {"config.budget": {"passes": 4.0}}
    assert keys([run("a", few, changes=STEPS), run("b", many, changes=STEPS)]) == [
        "training epochs"
    ]
    same = [run("c", few, changes=STEPS | budget), run("d", many, changes=STEPS | budget)]
    assert keys(same) == []
    floats = {"config.budget": {"stored_floats": 4}}
    same = [run("e", few, changes=STEPS | floats), run("f", many, changes=STEPS | floats)]
    assert keys(same) == ["training epochs"]


def test_a_budget_says_nothing_of_floors_nor_passes_of_what_takes_no_step(run):
    every = {"config.budget": {"passes": 2.0, "seconds": 9.0, "stored_floats": 10}}
    ended = run("a", changes=STEPS | every)
    floor = run("b", "closed_form", changes=NONE_TAKEN | {"config.floor": True})
    assert keys([ended, floor]) == []
    closed = run("c", "closed_form", changes=NONE_TAKEN)
    assert keys([ended, closed]) == ["budget of stored floats"]
    trained = {"trainable": [{"name": "head.weight", "shape": [2, 3]}]}  # by steps of a plugin
    told = ["budget of passes", "budget of seconds", "budget of stored floats"]
    assert keys([ended, run("d", "closed_form", changes=NONE_TAKEN | trained)]) == told
