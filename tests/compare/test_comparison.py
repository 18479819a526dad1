import pytest

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.errors import ConfigError, PEFTCLError, ProtocolError


def test_methods_and_tests(study):
    comparison = compare_runs([study])
    assert [(method.label, method.seeds) for method in comparison.methods] == [
        ("naive", (0, 1, 2)),
        ("ntk_cl recipe=corrected", (0,)),
        ("ntk_cl recipe=released", (0, 1, 2)),
    ]
    assert len(comparison.runs) == 7
    tests = {(t.first.label, t.second.label, t.quantity.key): t for t in comparison.tests}
    assert len(tests) == 6
    test = tests["naive", "ntk_cl recipe=released", "last_accuracy"]
    # last: 0.6, 0.61, 0.64 against 0.85, 0.85, 0.87; differences -0.25, -0.24, -0.23
    assert test.result.difference.mean == pytest.approx(-0.24)
    assert test.result.statistic == pytest.approx(-0.24 / (0.01 / 3**0.5))
    assert test.corrected == test.result.p_value  # it is the only pair with a p-value
    for other in ("naive", "ntk_cl recipe=released"):
        (test,) = [
            t
            for (a, b, key), t in tests.items()
            if {a, b} == {other, "ntk_cl recipe=corrected"} and key == "last_accuracy"
        ]
        assert (test.result.p_value, test.corrected) == (None, None)
        assert test.result.reason == "one common seed"


def test_holm_is_over_the_pairs_of_one_quantity(write, tmp_path):
    for seed in range(4):
        for name, drop in (("a", 0.1), ("b", 0.1 + 0.003 * seed), ("c", 0.2 - 0.01 * seed**2)):
            write(f"{name}{seed}", name, seed, 0.8, drop)
    tests = compare_runs([tmp_path]).tests
    for key in ("average_incremental_accuracy", "last_accuracy"):
        those = [t for t in tests if t.quantity.key == key]
        assert len(those) == 3
        smallest = min(those, key=lambda t: t.result.p_value)
        assert smallest.corrected == pytest.approx(3 * smallest.result.p_value)
        assert max(t.corrected for t in those) <= 1


def test_all_are_tested_against_one_and_corrected_for_these_alone(write, tmp_path):
    for seed in range(4):
        for name, drop in (("a", 0.1), ("b", 0.1 + 0.003 * seed), ("c x", 0.2 - 0.01 * seed**2)):
            write(f"{name}{seed}", name, seed, 0.8, drop)
    every = {(t.first.label, t.second.label): t for t in compare_runs([tmp_path]).tests}
    comparison = compare_runs([tmp_path], against="x")  # a part that one label alone has
    assert comparison.against.label == "c x"
    pairs = [(t.first.label, t.second.label) for t in comparison.tests]
    assert pairs == [("a", "c x"), ("b", "c x")] * 2
    for test in comparison.tests[2:]:
        assert test.result == every[test.first.label, "c x"].result
    least = min(comparison.tests[2:], key=lambda t: t.result.p_value)
    assert least.corrected == pytest.approx(2 * least.result.p_value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ntk", ["is a part of several labels", "recipe=corrected", "recipe=released"]),
        ("ridge", ["is the label of no method", "naive", "recipe=corrected"]),
        ("", ["is the label of no method"]),
    ],
)
def test_a_name_that_is_no_method_lists_those_that_are(study, name, told):
    with pytest.raises(ConfigError) as error:
        compare_runs([study], against=name)
    assert all(words in str(error.value) for words in told)
    assert ("naive" in str(error.value)) == (name != "ntk")


def test_a_whole_label_goes_before_a_part(write, tmp_path):
    write("a", {"name": "naive"})
    write("b", {"name": "naive_too"})
    assert compare_runs([tmp_path], against="naive").against.label == "naive"


def test_methods_are_sorted_and_what_has_no_such_number_comes_last(write, tmp_path):
    for name, start, drop in (("a", 0.7, 0.05), ("b", 0.9, 0.2), ("c", 0.8, 0.08)):
        write(name, name, 0, start, drop)
    gone = {"accuracy.average_incremental_accuracy": None, "accuracy.forgetting": None}
    write("d", "d", 0, 0.99, 0.0, changes=gone)

    def sorted_by(key):
        methods = compare_runs([tmp_path], sort=key).methods
        return "".join(method.label for method in methods)

    assert [sorted_by(key) for key in (None, "average", "last", "forgetting")] == [
        "abcd",
        "bcad",
        "dcba",
        "acbd",
    ]
    with pytest.raises(ConfigError, match="one of 'average', 'last', 'forgetting'"):
        sorted_by("seeds")


def test_incomplete_and_unreadable_records_are_left_out_and_listed(study, write):
    half = write("study/half", changes={"complete": False, "experiences.finished": 1})
    torn = write("study/torn")
    (torn / "metrics.json").write_text('{"format": 1, ')
    comparison = compare_runs([study])
    assert len(comparison.runs) == 7
    assert [(one.folder, one.reason) for one in comparison.incomplete] == [
        (half, "1 of 3 experiences are finished")
    ]
    assert [one.folder for one in comparison.unreadable] == [torn]


def test_nothing_complete_is_an_error_with_the_reasons(write, tmp_path):
    write("half", changes={"complete": False, "experiences.finished": 1})
    (write("torn") / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        compare_runs([tmp_path])
    assert str(caught.value) == (
        "there is no complete run to compare:\n"
        f"  {tmp_path}/half: 1 of 3 experiences are finished\n"
        f"  {tmp_path}/torn: metrics.json is not that of a run: it has no key 'format'"
    )


def test_an_incomplete_run_may_have_another_protocol(study, write):
    write(
        "study/half",
        changes={"complete": False, "experiences.finished": 1, "protocol.scenario": "task"},
    )
    assert compare_runs([study]).differences == ()


def test_another_protocol_is_refused_with_the_difference(write, tmp_path):
    for seed in (0, 1):
        write(f"a{seed}", "naive", seed)
    write("b", "ntk_cl", 0, changes={"weights_sha256": "0" * 64, "protocol.class_order": [1, 0]})
    with pytest.raises(ProtocolError) as caught:
        compare_runs([tmp_path])
    assert str(caught.value) == (
        "these runs do not share one protocol, so their numbers do not belong side by side:\n"
        f"  weights of the backbone: abababababab... in {tmp_path}/a0, {tmp_path}/a1; "
        f"000000000000... in {tmp_path}/b\n"
        f"  class order, seed 0: 0, 1, 2, 3, 4, 5 in {tmp_path}/a0; 1, 0 in {tmp_path}/b\n"
        "Compare those that do, or all of them nevertheless with --force (in Python, force=True)"
    )
    assert isinstance(caught.value, PEFTCLError | ValueError)


def test_another_protocol_can_be_forced_and_is_noted_but_not_paired(write, tmp_path):
    for seed in (0, 1):
        write(f"a{seed}", "naive", seed)
        order = {"protocol.class_order": [seed, 1 - seed]}
        write(f"b{seed}", "ntk_cl", seed, drop=0.1 * (1 + seed), changes=order)
    comparison = compare_runs([tmp_path], force=True)
    assert [one.title for one in comparison.differences] == [
        "class order, seed 0",
        "class order, seed 1",
    ]
    assert {test.result.reason for test in comparison.tests} == {"not the same streams"}


def test_other_epochs_can_be_forced_and_paired(write, tmp_path):
    for seed in (0, 1):
        for epochs in (1, 2):
            strategy = {"name": "naive", "train_epochs": epochs}
            write(f"{epochs}_{seed}", strategy, seed, drop=0.1 * epochs * (1 + seed))
    comparison = compare_runs([tmp_path], force=True)
    assert [method.label for method in comparison.methods] == [
        "naive train_epochs=1",
        "naive train_epochs=2",
    ]
    assert all(test.result.p_value is not None for test in comparison.tests)


def test_other_versions_are_noted(write, tmp_path):
    write("a", seed=0)
    other = {"versions.torch": "2.9.1", "platform.device": "cuda", "components.2.version": "0.2"}
    write("b", seed=1, changes=other | {"components.2.provider": "another"})
    write("c", "ntk_cl", seed=1)
    assert compare_runs([tmp_path]).versions == (
        ("device", ("cpu", "cuda")),
        ("torch", ("2.4.0", "2.9.1")),
    )


def test_published_numbers_are_looked_up_only_if_asked_for(study):
    assert compare_runs([study]).quoted is None
    assert compare_runs([study], published=True).quoted == ()
