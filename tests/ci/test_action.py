"""Another repository's job on Linux: each `run:` of the action in a fresh shell, as a runner does.

Only what GitHub alone has is stood in for: `uses:` of other actions, and `gh`, which keeps comments
in a file here.
"""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from harness.files import cache_folder
from harness.fixtures import model
from harness.fixtures.cache import exported
from harness.results import Case, Header, Writer
from harness.suites.ci.__main__ import _chosen, _of_artifacts
from tests.ci.test_asv import git, repository

ROOT = Path(__file__).parent.parent.parent
ACTION = YAML(typ="safe").load(ROOT / "action.yml")
MODELS = YAML(typ="safe").load(ROOT / ".github" / "workflows" / "models.yml")

FILES = ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_STEP_SUMMARY")
GH = """#!{python}
import json, pathlib, sys
words, store = sys.argv[2:], pathlib.Path({store!r})
comments = json.loads(store.read_text()) if store.exists() else []
if "--input" not in words:
    mark = "<!-- coreml-llm-harness -->"
    print("\\n".join(c["id"] for c in comments if c["body"].startswith(mark)))
    sys.exit()
body = json.load(sys.stdin)["body"]
method, place = words[words.index("--method") + 1], words[words.index("--method") + 2]
if {refuses}:
    sys.exit("gh: Resource not accessible by integration (HTTP 403)")
if method == "POST":
    assert place == "repos/me/models/issues/7/comments", place
    comments.append({{"id": str(len(comments)), "body": body}})
else:
    assert method == "PATCH" and place.startswith("repos/me/models/issues/comments/"), words
    comments[int(place.rpartition("/")[2])]["body"] = body
store.write_text(json.dumps(comments))
"""


def evaluate(text, contexts):
    """Return the value of a text with expressions of GitHub Actions."""

    def value(expression):
        names = {"cancelled": lambda: False, "contains": lambda all, one: one in all}
        code = re.sub(r"'(?:[^']|'')*'", lambda m: f" {m[0]} ", expression)
        code = (
            code.replace("&&", " and ").replace("||", " or ").replace("!cancelled", "not cancelled")
        )
        lookup = r"(?<!['\w])(inputs|github|runner|steps|matrix|needs|secrets)((?:\.[\w-]+)+)"
        return eval(re.sub(lookup, lambda m: f"look({m[0]!r})", code), {**names, "look": look})

    def look(path):
        found = contexts
        for part in path.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        return found

    whole = re.fullmatch(r"\$\{\{(.*)\}\}", text, re.DOTALL)
    if whole and "}}" not in whole[1]:
        return value(whole[1].strip())
    return re.sub(r"\$\{\{(.*?)\}\}", lambda m: str(value(m[1].strip())), text)


class Runner:
    """Runs the action's steps for a pull request or a schedule, in a clone of a repository."""

    def __init__(self, folder, clone, base="", event="pull_request", refuses=False):
        self.folder, self.clone = folder, clone
        self.comments = folder / "comments.json"
        for name in ("temp", "bin"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        gh = GH.format(python=sys.executable, store=str(self.comments), refuses=refuses)
        (folder / "bin" / "gh").write_text(gh, encoding="utf-8")
        (folder / "bin" / "gh").chmod(0o755)
        pull = {"number": 7, "base": {"sha": base}} if event == "pull_request" else None
        (folder / "event.json").write_text(json.dumps({"pull_request": pull}), encoding="utf-8")
        self.github = {
            "event_name": event,
            "event": {"pull_request": {"base": {"sha": base}}},
            "token": "secret",
            "action_path": str(ROOT),
        }

    def run(self, **given):
        """Return (outcome of each step by name, everything that was printed, the summary)."""
        contexts = {"github": self.github, "runner": {"temp": "", "os": "Linux"}, "steps": {}}
        inputs = {
            n: evaluate(row.get("default", ""), contexts) for n, row in ACTION["inputs"].items()
        }
        given = {name.replace("_", "-"): value for name, value in given.items()}
        assert not given.keys() - inputs.keys()
        contexts["inputs"] = inputs | {"python": sys.executable} | given
        outcomes, printed = {}, ""
        files = {name: self.folder / name for name in FILES}
        for step in ACTION["runs"]["steps"]:
            if "uses" in step or ("if" in step and not evaluate(step["if"], contexts)):
                continue
            files["GITHUB_OUTPUT"].write_text("", encoding="utf-8")
            done = self._shell(step, contexts, files)
            printed += done.stdout
            outcomes[step["name"]] = outcome = "failure" if done.returncode else "success"
            outputs = _pairs(files["GITHUB_OUTPUT"])
            contexts["steps"][step.get("id", "")] = {"outcome": outcome, "outputs": outputs}
        summary = files["GITHUB_STEP_SUMMARY"]
        return outcomes, printed, summary.read_text(encoding="utf-8") if summary.exists() else ""

    def _shell(self, step, contexts, files):
        assert step["shell"] == "bash" and "${{" not in step["run"]  # inputs cannot be code
        script = self.folder / "script.sh"
        script.write_text(step["run"], encoding="utf-8")
        variables = {
            **{name: os.environ[name] for name in ("HOME", "PYTHONPATH") if name in os.environ},
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HARNESS_CACHE": str(cache_folder()),
            **_pairs(files["GITHUB_ENV"]),
            "OMP_WAIT_POLICY": "PASSIVE",
            "GITHUB_ACTIONS": "true",
            "GITHUB_REPOSITORY": "me/models",
            "GITHUB_EVENT_PATH": str(self.folder / "event.json"),
            "RUNNER_TEMP": str(self.folder / "temp"),
            "RUNNER_OS": "Linux",
            "RUNNER_ENVIRONMENT": "github-hosted",
            **{name: str(path) for name, path in files.items()},
            **{n: str(evaluate(text, contexts)) for n, text in step.get("env", {}).items()},
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        return subprocess.run(
            command, cwd=self.clone, env=variables, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


OPTIONS = replace(model("tiny").options, mode="multifunction")


def _pairs(path):
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return dict(line.split("=", 1) for line in lines)


SETTINGS = 'runtimes = ["mil:widen"]\n[subjects.shipped]\nartifact = "shipped.pte"\n'


@pytest.fixture
def origin(tmp_path):
    """Return a repository with a sound model, and a function that clones it with a change."""
    folder = repository(tmp_path / "models", **{"harness.toml": SETTINGS})
    sound = exported("tiny", OPTIONS).read_bytes()
    (folder / "shipped.pte").write_bytes(sound)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "a model")

    def clone(name, **files):
        made = tmp_path / name / "work"
        git(tmp_path, "clone", "-q", str(folder), str(made))
        for path, content in files.items():
            (made / path.replace("_", ".")).write_bytes(content)
        git(made, "commit", "-q", "--allow-empty", "-am", name)
        return made

    clone.base, clone.sound = git(folder, "rev-parse", "HEAD"), sound
    return clone


@pytest.mark.slow
def test_a_worse_model_fails_with_annotations_a_summary_and_one_comment(origin, tmp_path):
    unshared = exported("tiny", replace(OPTIONS, weight_sharing="none")).read_bytes()
    clone = origin("worse", shipped_pte=unshared)
    runner = Runner(tmp_path / "runner", clone, origin.base)
    outcomes, printed, summary = runner.run(gate_arguments="--allow-inconclusive")
    assert outcomes["Compare with the base"] == "failure"
    assert outcomes["Comment on the pull request"] == "success"
    assert "\n::error title=" in printed
    assert "### FAILED: `results/gate-head/conformance.jsonl` against" in summary
    assert "$ harness gate .harness-base/shipped.pte shipped.pte" in printed
    (comment,) = json.loads(runner.comments.read_text(encoding="utf-8"))
    assert "### FAILED" in comment["body"]
    runner.run(run="conformance")
    (renewed,) = json.loads(runner.comments.read_text(encoding="utf-8"))
    assert renewed["id"] == comment["id"] and renewed["body"] != comment["body"]


def test_an_unchanged_model_passes(origin, tmp_path):
    runner = Runner(tmp_path / "runner", origin("same", README=b""), origin.base)
    outcomes, printed, summary = runner.run(gate_arguments="--allow-inconclusive")
    assert set(outcomes.values()) == {"success"}, printed
    assert "::error" not in printed and "PASSED: conformance" in summary
    assert not list(runner.clone.glob("results/gate/shipped*"))  # equal bytes are not timed


def test_a_token_that_may_not_comment_is_told_of_and_no_failure(origin, tmp_path):
    runner = Runner(tmp_path / "runner", origin("fork"), origin.base, refuses=True)
    (tmp_path / "runner").mkdir(exist_ok=True)
    (runner.clone / "results").mkdir()
    (runner.clone / "results" / "summary.md").write_text("### PASSED\n", encoding="utf-8")
    outcomes, printed, _ = runner.run(run="")
    assert outcomes["Comment on the pull request"] == "success"
    assert "::warning title=no comment::gh failed" in printed and "pull-requests: write" in printed


def test_names_of_facts_are_accepted_of_result_files_only():
    words = ["--accept", "weights", "--accept=opset", "--seconds", "90", "--accept", "loads"]
    assert _of_artifacts(words) == ["--seconds", "90", "--accept", "weights"]


def test_a_model_that_is_new_is_compared_with_nothing(origin, tmp_path):
    settings = SETTINGS.replace("shipped]", "other]").encode()
    runner = Runner(tmp_path / "runner", origin("new", harness_toml=settings), origin.base)
    outcomes, printed, summary = runner.run(run="gate", comment="false")
    assert outcomes["Compare with the base"] == "success"
    assert "::notice title=nothing compared::" in printed and "### Nothing compared" in summary


def test_input_is_never_code(origin, tmp_path):
    runner = Runner(tmp_path / "runner", origin("evil"), origin.base)
    evil = '"; touch broken; echo "$(touch broken)'
    outcomes, printed, _ = runner.run(subjects=evil, run="conformance", comment="false")
    assert outcomes["Judge the models"] == "failure" and "Traceback" not in printed
    assert not (runner.clone / "broken").exists()


@pytest.mark.slow
def test_a_night_measures_the_commit_and_pushes_the_history(origin, tmp_path):
    runner = Runner(tmp_path / "runner", origin("night"), event="schedule")
    outcomes, printed, summary = runner.run(run="history", machine="linux-hosted")
    assert outcomes == {"Install the harness": "success", "Measure the commit": "success"}, printed
    files = git(tmp_path / "models", "ls-tree", "-r", "--name-only", "benchmarks")
    assert f"models/linux-hosted/{git(runner.clone, 'rev-parse', 'HEAD')[:8]}-py" in files
    assert "### PASSED: history" in summary and "series compared, 0 regressions" in printed
    assert (runner.clone / "results" / "history" / "models" / "index.html").is_file()


def test_a_checkout_of_executorch_judges_itself(tmp_path, monkeypatch):
    (tmp_path / "src" / "executorch").mkdir(parents=True)
    (tmp_path / "version.txt").write_text("1.5.0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    given = Namespace(exporters="", runtimes="", arguments="")
    assert _chosen(given, ["tiny"])[2:] == ["--exporter", f"executorch@{tmp_path}"]
    assert _chosen(Namespace(**vars(given) | {"exporters": "coreml"}), ["tiny"])[3:] == ["coreml"]


def plan(tmp_path, **inputs):
    """Run the step `plan` of the reusable workflow; return (status, printed, its outputs)."""
    (step,) = MODELS["jobs"]["plan"]["steps"]
    declared = MODELS["on"]["workflow_call"]["inputs"]
    values = {name: row.get("default", "") for name, row in declared.items()} | inputs
    output = tmp_path / "output"
    output.write_text("", encoding="utf-8")
    env = {n: str(evaluate(text, {"inputs": values})) for n, text in step["env"].items()}
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]],
        env={**os.environ, **env, "GITHUB_OUTPUT": str(output)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = output.read_text(encoding="utf-8").splitlines()
    return done.returncode, done.stdout, dict(line.split("=", 1) for line in lines)


def test_the_workflow_makes_a_job_for_each_runner_and_shard(tmp_path):
    runners = '["ubuntu-latest", ["self-hosted", "macOS", "neural engine"]]'
    status, _, found = plan(tmp_path, harness="me/harness@v1.2", runners=runners, shards=2)
    assert status == 0
    assert (found["repository"], found["ref"]) == ("me/harness", "v1.2")
    jobs = json.loads(found["jobs"])["include"]
    assert [(job["name"], job["shard"]) for job in jobs] == [
        ("ubuntu-latest", 1), ("ubuntu-latest", 2),
        ("self-hosted-macOS-neural-engine", 1), ("self-hosted-macOS-neural-engine", 2),
    ]  # fmt: skip
    assert jobs[2]["runner"] == ["self-hosted", "macOS", "neural engine"]
    assert len(json.loads(found["machines"])["include"]) == 2


def test_a_workflow_without_the_harness_revision_says_what_to_give(tmp_path):
    status, printed, _ = plan(tmp_path, harness="harness")
    assert status == 2 and "::error title=harness::give OWNER/REPOSITORY@REF" in printed


def test_the_workflow_gives_the_action_inputs_that_it_has():
    for job in MODELS["jobs"].values():
        for step in job["steps"]:
            if step.get("uses") == "./.harness":
                assert step["with"].keys() <= ACTION["inputs"].keys()


def shards(folder, *names):
    """Write the results of a passing run as artifacts that were downloaded."""
    for name in names:
        index, count = int(name.rpartition("-")[2]), 2
        case = Case("conformance", "parity", f"model-{index}", "single", "-", "pass", comparisons=1)
        header = Header.here({}, shard={"index": index, "count": count})
        with Writer(folder / name / "results" / "conformance.jsonl", header) as writer:
            writer.add(case)
            writer.finish()


@pytest.mark.parametrize(
    ("names", "machines", "outcome", "said"),
    [
        (["linux-1", "linux-2"], "linux", "success", "PASSED: conformance on `linux`"),
        (["linux-1"], "linux", "failure", "linux: shard 1/2 is there alone"),
        (["linux-1", "linux-2"], "linux macos-15", "failure", "results-macos-15-* with"),
        ([], "", "failure", "results-*-* with conformance.jsonl is missing"),
    ],
)
def test_shards_are_merged_and_none_may_be_missing(
    origin, tmp_path, names, machines, outcome, said
):
    runner = Runner(tmp_path / "runner", origin("merge"), origin.base)
    shards(runner.clone / "shards", *(f"results-{name}" for name in names))
    outcomes, printed, summary = runner.run(run="merge", machines=machines, comment="false")
    assert outcomes["Merge the shards"] == outcome
    assert said in printed + summary


def test_the_documented_lines_are_few_and_name_inputs_that_exist():
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    (alone,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    comment, *whole = (ROOT / "examples" / "workflow.yml").read_text(encoding="utf-8").splitlines()
    called = YAML(typ="safe").load("\n".join(whole))
    assert comment.startswith("#") and len(whole) <= 8 and len(alone.splitlines()) <= 8
    (job,) = called["jobs"].values()
    assert job["with"].keys() <= MODELS["on"]["workflow_call"]["inputs"].keys()
    asked = {"contents": "read"}
    for one in MODELS["jobs"].values():
        asked |= {
            name: level for name, level in one.get("permissions", {}).items() if level == "write"
        }
    assert called["permissions"] == asked
