"""The history of a repository: its series grow, its steps fail, its branch keeps them.

Only the measuring is left out: result files have the values of a test, asv publishes and judges.
"""

import json

import pytest

from harness.suites.benchmarks import language_models
from harness.suites.benchmarks import repository as repositories
from tests.ci.test_asv import MACHINE, git, repository, run

TIME, RATIO, SIZE = "PerToken.track_prefill", "PerTokenRatio.track_prefill", "Size.track_bytes"
EXPORT = [["'tiny'"], ["'executorch'"], ["'single'"]]
PARAMETERS = {SIZE: EXPORT, TIME: [*EXPORT, ["'mil:widen'"]], RATIO: [*EXPORT, ["'mil:widen'"]]}
UNITS = {SIZE: "bytes", TIME: "ms/token", RATIO: "x eager:fp32"}
FLAT = [100.0, 101.0, 99.5, 100.5, 99.0, 100.2, 100.8, 99.9]
STEP = [100.0, 101.0, 99.5, 100.5, 119.0, 120.2, 120.8, 119.9]


def commits(folder, count):
    """Add commits; return all but the first of the repository."""
    for number in range(count):
        (folder / "file").write_text(str(number), encoding="utf-8")
        git(folder, "add", "file")
        git(folder, "commit", "-qm", f"change {number}")
    return git(folder, "rev-list", "--reverse", "HEAD").split()[1:]


def write(folder, commit, values, machine=MACHINE, torch="2.13.0", parameters=None):
    """Write the result of a commit as asv does, `values` by benchmark."""
    results = repositories.Repository(folder).results
    rows = {
        f"language_models.{name}": [[value], (parameters or PARAMETERS)[name], "1"]
        for name, value in values.items()
    }
    date = int(git(folder, "show", "-s", "--format=%at", commit)) * 1000
    record = {
        "commit_hash": commit,
        "env_name": "py3.11-x",
        "date": date,
        "params": {"machine": machine, "python": "3.11"},
        "python": "3.11",
        "requirements": {},
        "env_vars": {},
        "result_columns": ["result", "params", "version"],
        "results": rows,
        "durations": {},
        "version": 2,
        "session": {"versions": {"torch": torch}, "machine": {"os": "Linux"}},
    }
    benchmarks = {
        f"language_models.{name}": {
            "name": f"language_models.{name}",
            "params": (parameters or PARAMETERS)[name],
            "param_names": ["subject", "exporter", "mode", "runtime"][: len(PARAMETERS[name])],
            "unit": UNITS[name],
            "type": "track",
            "version": "1",
            "code": "",
        }
        for name in values
    }
    files = {
        f"{machine}/{commit[:8]}-py3.11-x.json": record,
        f"{machine}/machine.json": {"machine": machine, "version": 1},
        "benchmarks.json": {**benchmarks, "version": 2},
    }
    for name, value in files.items():
        path = results / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")


def measured(folder, **series):
    """Write one series per benchmark, a point for each commit; return the commits."""
    names = {"time": TIME, "ratio": RATIO, "size": SIZE}
    found = commits(folder, len(next(iter(series.values()))))
    for number, commit in enumerate(found):
        write(folder, commit, {names[name]: values[number] for name, values in series.items()})
    return found


@pytest.fixture
def work(tmp_path):
    return repository(tmp_path / "work")


def test_a_slower_commit_fails_and_is_named_with_its_series(work):
    found = measured(work, time=STEP, ratio=STEP)
    out = run(work, "track", status=1)
    series = "PerToken.track_prefill('tiny', 'executorch', 'single', 'mil:widen')"
    assert f"REGRESSION {series} on {MACHINE}: 100" in out
    assert f"ms/token (+19.8%) at {found[4][:12]} (change 4)" in out
    assert "2 of 2 series compared, 1 regressions" in out


def test_noise_does_not_fail(work):
    measured(work, time=FLAT, ratio=FLAT[::-1], size=[100.0] * 8)
    assert "3 of 3 series compared, 0 regressions" in run(work, "track")


def test_a_step_that_the_control_has_too_is_the_machines(work):
    measured(work, time=STEP, ratio=FLAT)
    out = run(work, "track")
    assert (
        "the machine's, as the control changed too: PerToken.track_prefill" in out
        and "0 regressions" in out
    )


def test_a_step_that_was_taken_back_does_not_fail(work):
    measured(work, time=[*STEP, *FLAT], ratio=[*STEP, *FLAT])
    assert "0 regressions" in run(work, "track")


def test_a_step_of_a_time_needs_a_second_point_and_names_the_first(work):
    found = measured(work, time=STEP[:5], ratio=STEP[:5])
    assert "2 of 2 series compared, 0 regressions" in run(work, "track")
    write(work, commits(work, 1)[-1], {TIME: STEP[5], RATIO: STEP[5]})
    assert f"at {found[4][:12]} (change 4)" in run(work, "track", status=1)


def test_two_points_of_a_time_decide_nothing(work):
    measured(work, time=[100.0, 120.0], ratio=[100.0, 120.0])
    assert "0 of 2 series compared" in run(work, "track", status=4)


def test_the_last_commit_alone_may_fail_by_its_size(work):
    found = measured(work, size=[578_076.0] * 4 + [612_000.0])
    assert f"(+5.9%) at {found[4][:12]} (change 4)" in run(work, "track", status=1)


def test_a_control_that_became_faster_is_no_regression(work):
    measured(work, time=FLAT, ratio=STEP)
    assert "0 regressions" in run(work, "track")


def test_what_else_changed_with_a_step_is_said(work):
    found = measured(work, size=[100.0] * 4 + [120.0] * 2)
    write(work, found[4], {SIZE: 120.0}, torch="2.14.0")
    assert "; with it changed torch 2.13.0 -> 2.14.0" in run(work, "track", status=1)


def test_a_commit_is_accepted_by_name_for_the_series_that_are_named(work):
    found = measured(work, size=[100.0] * 4 + [120.0] * 4)
    assert "0 regressions" in run(work, "track", "--accept", f"Size={found[4]}")
    assert "0 regressions" in run(work, "track", "--accept", found[4][:10])
    run(work, "track", "--accept", f"Time={found[4]}", status=1)
    run(work, "track", "--accept", found[3], status=1)


def test_a_threshold_decides_what_is_small(work):
    measured(work, size=[100.0] * 4 + [104.0] * 4)
    assert "0 regressions" in run(work, "track")
    assert "(+4.0%)" in run(work, "track", "--threshold", "3", status=1)


def test_a_history_of_one_point_decides_nothing(work):
    measured(work, size=[100.0])
    assert "no series has points enough" in run(work, "track", status=4)
    assert "0 of 1 series compared" in run(work, "track", "--allow-inconclusive")


def test_results_of_another_session_keep_their_series(work):
    """asv's own list has the parameters of the last run alone."""
    first, second = commits(work, 2)
    other = {SIZE: [["'mine'"], ["'coreml'"], ["'single'"]]}
    write(work, first, {SIZE: 100.0})
    write(work, second, {SIZE: 50.0}, parameters=other)
    run(work, "track", status=4)
    listed = json.loads((work / ".asv/work/html/index.json").read_text(encoding="utf-8"))
    params = listed["benchmarks"][f"language_models.{SIZE}"]["params"]
    assert sorted(params[0]) == ["'mine'", "'tiny'"] and sorted(params[1]) == [
        "'coreml'",
        "'executorch'",
    ]


def test_machines_that_come_and_go_make_one_series(work, tmp_path):
    """Each has a clone in a new folder, and only the branch in common."""
    found = commits(work, 3)
    for number, commit in enumerate(found):
        clone = tmp_path / f"runner-{number}" / f"folder-{number}"
        clone.parent.mkdir()
        git(tmp_path, "clone", "-q", str(work), str(clone))
        write(clone, commit, {SIZE: 100.0 + number})
        before = git(clone, "status", "--porcelain")
        assert "git push origin benchmarks" in run(clone, "publish")
        assert git(clone, "status", "--porcelain") == before
        git(clone, "push", "-q", "origin", "benchmarks")
    last = tmp_path / "last"
    git(tmp_path, "clone", "-q", str(work), str(last))
    run(last, "track")
    (graph,) = (last / ".asv/work/html/graphs/branch-HEAD").glob(
        f"machine-{MACHINE}/*/*.{SIZE}.json"
    )
    points = json.loads(graph.read_text(encoding="utf-8"))
    assert [values for _, values in points] == [[100.0], [101.0], [102.0]]


def test_the_branch_of_the_origin_is_merged_and_nothing_is_pushed(work, tmp_path):
    first, second = commits(work, 2)
    clones = [tmp_path / "one", tmp_path / "two"]
    for clone in clones:
        git(tmp_path, "clone", "-q", str(work), str(clone))
    for clone, commit in zip(clones, (first, second), strict=True):
        write(clone, commit, {SIZE: 1.0})
        run(clone, "publish")
    assert git(work, "branch", "--list", "benchmarks") == ""
    git(clones[0], "push", "-q", "origin", "benchmarks")
    git(clones[1], "fetch", "-q")
    run(clones[1], "publish")
    git(clones[1], "push", "-q", "origin", "benchmarks")  # a fast-forward
    files = git(work, "ls-tree", "-r", "--name-only", "benchmarks")
    assert f"work/{MACHINE}/{first[:8]}-" in files and f"work/{MACHINE}/{second[:8]}-" in files
    assert len(git(work, "log", "-1", "--format=%P", "benchmarks").split()) == 2


def test_publishing_twice_adds_no_commit(work):
    measured(work, size=[1.0, 1.0])
    run(work, "publish")
    tip = git(work, "rev-parse", "benchmarks")
    run(work, "publish")
    assert git(work, "rev-parse", "benchmarks") == tip


def test_a_shallow_clone_says_what_it_leaves_out(work, tmp_path):
    measured(work, size=[1.0, 1.0, 1.0])
    run(work, "publish")
    clone = tmp_path / "shallow"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{work}", str(clone))
    git(clone, "fetch", "-q", "--depth", "1", "origin", "benchmarks:refs/remotes/origin/benchmarks")
    assert "2 measured commits are not in" in run(clone, "track", status=4)


def test_every_figure_has_a_ratio_and_each_keeps_its_series_when_code_changes():
    classes = {
        name: found
        for name, found in vars(language_models).items()
        if isinstance(found, type) and any(n.startswith("track_") for n in dir(found))
    }
    plain = {name for name in classes if not name.endswith("Ratio")}
    assert plain and {f"{name}Ratio" for name in plain} == classes.keys() - plain
    assert all(found.version == "1" for found in classes.values())
