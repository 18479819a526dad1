"""What metrics told, read from records: by hand, foreign and broken."""

import pytest

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.summaries import AnyTime, Kernels, experience_names, told


def read(folder, kind=Kernels, metric="NTKMetric"):
    return told(compare_runs([folder]), metric, kind)


def test_what_fits_is_read_by_method_and_seed(watched):
    found = read(watched)
    naive, pegp = found.by_method
    assert (naive.label, pegp.label) == ("naive", "pegp")
    assert list(found.by_method[naive]) == [0, 1]
    assert found.by_method[naive][1].kernel_map[0] == [1.0, 0.7, 0.35]
    assert found.by_method[pegp][0].forgetting[0].measured == 0.2
    assert found.left_out == ()
    curves = read(watched, AnyTime, "AnyTimeMetric")
    assert curves.by_method.keys() == {*curves.by_method}
    (first, _) = curves.by_method.values()
    assert first[0].iterations == [5, 10, 15, 20, 25, 30]


def test_nothing_is_made_of_records_without_any(study):
    found = read(study)
    assert not found
    assert not found.by_method


KERNEL = [
    ("kernel_map", "a map", "kernel_map: Input should be a valid list"),
    ("kernel_map", [[1.0, 0.5]], "kernel_map is not square"),
    ("kernel_map.0.1", -0.5, "kernel_map.0.1: Input should be greater than or equal to 0"),
    ("kernel_map", [[1.0] * 4] * 4, "it is of 4 experiences, and the run has 3"),
    ("drift_from_first.1", "0.5", "drift_from_first.1: Input should be a valid number"),
    ("drift_from_first.1", 1e300, "drift_from_first.1: Input should be less than or equal to"),
    ("forgetting.0.after", 3, "it is of 4 experiences, and the run has 3"),
    ("forgetting", [{"experience": 0}], "the key 'forgetting.0.after' is missing"),
]
CURVE = [
    ("iterations", [5, 10], "iterations, experience and accuracy are not of as many points"),
    ("iterations.1", 5, "iterations do not rise"),
    ("accuracy.0", 70.0, "accuracy.0: Input should be less than or equal to 1"),
    ("experience.5", 7, "it is of 8 experiences, and the run has 3"),
    ("area", "large", "area: Input should be a valid number"),
]


@pytest.mark.parametrize(
    ("metric", "kind", "key", "value", "reason"),
    [("NTKMetric", Kernels, *case) for case in KERNEL]
    + [("AnyTimeMetric", AnyTime, *case) for case in CURVE],
)
def test_what_does_not_fit_is_left_out_with_its_reason(
    watched, alter, metric, kind, key, value, reason
):
    folder = watched / "naive_1"
    alter(folder, changes={f"metric_summaries.{metric}.{key}": value})
    found = read(watched, kind, metric)
    assert [list(each) for each in found.by_method.values()] == [[0], [0]]
    (line,) = found.left_out
    assert line.startswith(f"Left out: what {metric} told in {folder}: {reason}")


@pytest.mark.parametrize("summary", [None, [], "text", 3.5, {}])
def test_a_foreign_summary_of_that_name_is_left_out(watched, alter, summary):
    for folder in watched.iterdir():
        alter(folder, changes={"metric_summaries": {"NTKMetric": summary, "Other": {"a": 1}}})
    found = read(watched)
    assert found.by_method == {}
    assert len(found.left_out) == 3
    assert found


def test_values_that_are_missing_and_keys_that_nobody_knows_are_taken(watched, alter):
    changes = {"kernel_map.0.1": None, "forgetting.0.predicted": None, "more": {"a": [1]}}
    folder = watched / "pegp_0"
    alter(folder, changes={f"metric_summaries.NTKMetric.{k}": v for k, v in changes.items()})
    *_, summaries = read(watched).by_method.values()
    assert summaries[0].kernel_map[0][1] is None
    assert summaries[0].forgetting[0].predicted is None


def test_experiences_have_the_names_of_their_classes_or_domains(watched, alter):
    runs = compare_runs([watched]).runs
    assert experience_names(runs) == ["1 (c0, c1)", "2 (c2, c3)", "3 (c4, c5)"]
    domains = ["real", "an odd domain's name", ""]
    for folder in watched.iterdir():
        alter(folder, changes={"protocol.domains": domains})
    runs = compare_runs([watched]).runs
    assert experience_names(runs) == ["1 (real)", "2 (an odd domain…)", "3"]
    assert experience_names(runs, longest=20)[1] == "2 (an odd domain's name)"


def test_experiences_that_differ_between_runs_have_numbers_alone(study):
    assert experience_names(compare_runs([study]).runs) == ["1", "2", "3"]
