import io

from rich.console import Console

from avalanche_peftcl.runs.progress import RunProgress


def told(record):
    console = Console(file=io.StringIO(), width=80)
    RunProgress(console).tell(record)
    return console.file.getvalue()


def test_an_experience_has_its_domain_or_its_classes(record_of):
    record = record_of(2, 2, notes=[[], ["done"]])
    assert told(record).startswith("experience 2/2  classes a|b, c  trained 1.0 s  accuracy on")
    domains = {"scenario": "domain", "domains": ["photo", "art"]}
    protocol = record.protocol.model_copy(update=domains)
    by_domain = record.model_copy(update={"protocol": protocol})
    assert told(by_domain).startswith("experience 2/2  art  trained 1.0 s  accuracy on seen")
    joint = by_domain.model_copy(update={"joint": True})
    assert told(joint).startswith("all experiences  classes a|b, c  trained")
