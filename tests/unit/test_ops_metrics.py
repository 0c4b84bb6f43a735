"""Rules and dashboard ask for figures that there are, by labels that they have."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pgmail import sqlfiles
from pgmail.metrics.families import BY_TENANT, FAMILIES

OPS = Path(sqlfiles.home()) / "ops"
RULES = OPS / "prometheus" / "pgmail.rules.yml"
DASHBOARD = OPS / "grafana" / "pgmail.json"
PROMTOOL = shutil.which("promtool")
_TEXT = re.compile(r'"[^"]*"')


def panels():
    """Each panel's title and its expressions."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel["title"], [target["expr"] for target in panel["targets"]]


def rules():
    """Each rule's name and its expression."""
    text = re.sub(
        r"expr: \|\n((?: {10}.*\n)+)", lambda m: "expr: " + " ".join(m[1].split()) + "\n", RULES.read_text()
    )
    found = re.findall(r"- (?:alert|record): (\S+)\n\s+expr: (.+)\n", text)
    assert len(found) == RULES.read_text().count("expr:")
    return found


def shown():
    """Every sample that a process may show, with its labels."""
    for family in FAMILIES.values():
        labels = {*family.labels, "instance", "job", *(["tenant"] if family.name in BY_TENANT else [])}
        if family.kind == "histogram":
            for end, more in (("_bucket", {"le"}), ("_sum", set()), ("_count", set())):
                yield family.shown + end, labels | more
        else:
            yield family.shown, labels


@pytest.mark.parametrize(
    ("name", "expressions"),
    [*panels(), *((name, [text]) for name, text in rules())],
    ids=lambda x: str(x)[:50],
)
def test_what_is_asked_for_is_a_figure_with_these_labels(name, expressions):
    known, recorded = dict(shown()), {rule for rule, _ in rules()}
    for expression in expressions:
        asked = re.findall(r"\b(pgmail[_:][\w:]+)(?:\{([^}]*)\})?", _TEXT.sub('""', expression))
        assert asked or "process_" in expression or "up{" in expression
        for figure, matchers in asked:
            assert figure in known or figure in recorded, figure
            if figure in known:
                assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[figure]
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            named = {label.strip() for label in labels.split(",")}
            assert named <= set().union(*(known.get(figure, named) for figure, _ in asked))


def test_each_panel_has_a_title_of_its_own_and_names_the_chosen_source():
    titles = [title for title, _ in panels()]
    assert len(titles) == len(set(titles))
    found = json.loads(DASHBOARD.read_text())
    assert {panel["datasource"]["uid"] for panel in found["panels"] if panel["type"] != "row"} == {
        "${source}"
    }
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
@pytest.mark.parametrize("words", [("rules", RULES), ("config", OPS / "prometheus" / "prometheus.yml")])
def test_prometheus_takes_the_files(words):
    kind, path = words
    done = subprocess.run([PROMTOOL, "check", kind, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
