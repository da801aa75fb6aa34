"""Known defects: which cases they match, by patterns and by the exporter of the artifact."""

from dataclasses import replace

import pytest
from packaging.version import Version

from harness.errors import HarnessError
from harness.results import Case, KnownDefect, RecordedFinding, read_known
from harness.results.known import judge_against_known, parse_versions

SORTED = KnownDefect("rows are sorted", check="cache-rows", exporter="executorch >=1.3, <1.6")
OURS = KnownDefect("ours differs", fixture="tiny*", exporter="coreml")
VERSIONS = parse_versions(
    {
        "executorch": "1.4.1",
        "executorch@1.5.1": "1.5.1",
        "executorch@1.6.0": "1.6.0",
        "executorch@1.5.0+src.1a2b3c4d": "1.5.0+src.1a2b3c4d",
        "coreml": None,
    }
)


def case(fixture, outcome="fail", check="cache-rows"):
    reason = "" if outcome == "pass" else "wrong"
    return Case("conformance", check, fixture, outcome=outcome, reason=reason, comparisons=1)


def outcome(fixture, *given, versions=VERSIONS):
    return judge_against_known(case(fixture, *given), [SORTED, OURS], versions).outcome


@pytest.mark.parametrize(
    ("fixture", "expected"),
    [
        ("tiny", "known"),
        ("executorch@1.5.1:tiny", "known"),
        ("executorch@1.5.0+src.1a2b3c4d:tiny", "known"),
        ("executorch@1.6.0:tiny", "fail"),  # beyond the range
        ("executorch@1.2.0:tiny", "fail"),  # not an exporter of this run
        ("coreml:other", "fail"),
        ("coreml:tiny+b4w", "known"),  # OURS: its pattern does not name the exporter
    ],
)
def test_a_defect_is_that_of_the_versions_that_have_it(fixture, expected):
    assert outcome(fixture) == expected


def test_the_first_defect_that_matches_is_named():
    known = [KnownDefect("another", check="other"), KnownDefect("issue 1", check="cache*"), SORTED]
    judged = judge_against_known(case("tiny"), known, VERSIONS)
    assert (judged.outcome, judged.issue) == ("known", "issue 1")
    judged = judge_against_known(case("tiny", "pass"), known, VERSIONS)
    assert judged.outcome == "fail" and "issue 1 no longer shows" in judged.reason


def test_a_bug_of_the_harness_is_never_a_known_defect():
    bug = replace(case("tiny"), traceback="Traceback: ...")
    assert judge_against_known(bug, [KnownDefect("an issue")]) == bug


def test_a_defect_that_shows_as_a_failure_excuses_no_error_and_must_still_show():
    known = [KnownDefect("it raises", check="cache-*", outcome="fail")]
    judged = [judge_against_known(case("tiny", how), known).outcome for how in ("fail", "pass")]
    assert judged == ["known", "fail"]
    for how, detail in (("error", {"stage": "check"}), ("timeout", {})):
        broken = Case("conformance", "cache-rows", "tiny", outcome=how, reason="no", **detail)
        assert judge_against_known(broken, known) == broken


def found(*failing, accepted=()):
    findings = [*(RecordedFinding(c, "p", "bad") for c in failing)]
    findings += [RecordedFinding(c, "p", "bad", warning=True) for c in accepted]
    outcome, reason = ("fail", "all") if failing else ("pass", "")
    names = {"check": "hazards", "fixture": "tiny", "outcome": outcome, "reason": reason}
    return Case("check", **names, comparisons=1, findings=tuple(findings))


@pytest.mark.parametrize(
    ("given", "codes", "outcome", "reason"),
    [
        (found("H42"), ("H42",), "known", "all"),
        (found("H42", "H48"), ("H42",), "fail", "H48 p: bad"),
        (found("H42", "H48"), ("H42", "H48"), "known", "all"),
        (found("H42"), ("H42", "H48"), "fail", "issue H48 no longer shows: remove it"),
        (found("H49"), ("H42",), "fail", "all"),
        (found(), ("H42",), "fail", "issue H42 no longer shows: remove it"),
        (found(accepted=["H42"]), ("H42",), "pass", ""),  # of a run that is not strict
    ],
)
def test_a_defect_with_a_code_excuses_findings_of_this_code_alone(given, codes, outcome, reason):
    known = [KnownDefect(f"issue {code}", check="hazards", code=code) for code in codes]
    judged = judge_against_known(given, known, VERSIONS)
    assert judged.outcome == outcome and judged.reason.startswith(reason)
    assert judged.issue == (f"issue {codes[0]}" if outcome == "known" else "")
    assert [one.warning for one in judged.findings] == [
        old.warning or old.code in codes for old in given.findings
    ]


def test_a_code_excuses_no_check_that_was_skipped_or_has_a_bug():
    known = [KnownDefect("an issue", check="hazards", code="H42")]
    skipped = replace(found(), outcome="skip", reason="not here")
    bug = replace(found("H42"), traceback="Traceback: ...")
    assert [judge_against_known(one, known) for one in (skipped, bug)] == [skipped, bug]


def test_without_versions_a_range_matches_nothing():
    assert outcome("tiny", versions=None) == "fail"
    assert outcome("coreml:tiny", versions=None) == "known"


def test_a_defect_that_a_release_no_longer_shows_is_a_failure():
    assert outcome("executorch@1.5.1:tiny", "pass") == "fail"
    assert outcome("executorch@1.6.0:tiny", "pass") == "pass"


def test_a_checkout_may_have_repaired_it():
    assert outcome("executorch@1.5.0+src.1a2b3c4d:tiny", "pass") == "pass"


def test_versions_that_cannot_be_ordered_are_left_out():
    assert parse_versions({"a": "1.4", "b": "main", "c": None}) == {"a": Version("1.4")}


def test_a_range_that_cannot_be_read_is_one_sentence(tmp_path):
    path = tmp_path / "known.toml"
    path.write_text('[[known]]\nissue = "an issue"\nexporter = "executorch 1.4 and on"\n')
    with pytest.raises(HarnessError, match="an issue: the exporter 'executorch 1.4 and on' is not"):
        read_known(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("known = 3", "known must be tables"),
        ("known = [3]", "known must be tables"),
        ("[known]", "known must be tables"),
        ("[[known]]\nissue = 3", "table 1: issue must be a text"),
        ("[[known]]\nissue = 'a'\ncheck = ['b']", "table 1: check must be a text"),
        (f"[[known]]\nissue{'.a' * 5000} = 1", "nested too deeply"),
    ],
)
def test_a_file_of_other_values_is_one_sentence(tmp_path, text, problem):
    (tmp_path / "known.toml").write_text(text)
    with pytest.raises(HarnessError, match=problem):
        read_known(tmp_path / "known.toml")
