"""The reference of the site leaves nothing out and says what ``--help`` says."""

from __future__ import annotations

import argparse
import html
import re

import pytest
import yaml

import nnunetv2_meddino.cli.main
import pretraining.cli.main
from nnunetv2_meddino.trainers import TRAINERS
from nnunetv2_meddino.weights.catalog import CATALOG
from pretraining.config.parse import to_yaml
from pretraining.config.recipes import recipe
from tests.conftest import PROJECT
from website.options import command_page, prose
from website.reference import PYTHON, pages


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    """The pages by path, as a reader sees their texts."""
    return {path: html.unescape(re.sub(r"</?code>", "`", content)) for path, content in pages()}


@pytest.mark.parametrize("module", [nnunetv2_meddino.cli.main, pretraining.cli.main])
def test_every_option_that_a_command_takes_is_explained(reference, module, capsys):
    page = reference[f"reference/{'meddino' if module is nnunetv2_meddino.cli.main else 'meddino-pretrain'}.md"]
    sections = dict(re.findall(r"^#+ ([\w -]+)\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL))
    explained = [name for name, text in sections.items() if "| option |" in text]
    assert len(explained) >= 8
    for name in explained:
        with pytest.raises(SystemExit):
            module.main([*name.split()[1:], "--help"])
        shown = set(re.findall(r"(?:^ {2}|, )(--?[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE))
        assert shown - set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", sections[name])) <= {"-h", "--help"}, name


def test_defaults_stand_beside_what_they_are_of_and_markup_is_text():
    parser = argparse.ArgumentParser(prog="scan")
    command = parser.add_subparsers().add_parser("slice", prog="scan slice", description="cut *one* slice")
    command.add_argument("--size", default=896, metavar="A|B", help="side of the `patch`, <px> (default: %(default)s)")
    page = command_page(parser, "scan", "Scans.")
    assert "Cut \\*one\\* slice." in page
    row = next(line for line in page.splitlines() if "--size" in line and line.startswith("|"))
    cells = (
        "| <code>--size</code> <code>A&#124;B</code> | side of the <code>patch</code>, &lt;px&gt; | <code>896</code> |"
    )
    assert row == cells


def test_every_setting_of_a_training_has_its_meaning_and_its_value(reference):
    page = reference["reference/settings.md"]
    rows = dict(re.findall(r"^\| `--([\w.-]+)` \| ([^|]+) \|", page, re.MULTILINE))

    def names(content, prefix=""):
        for key, value in content.items():
            name = prefix.removesuffix(".") if key == "peak" else f"{prefix}{key}".replace("_", "-")
            yield from names(value, f"{name}.") if isinstance(value, dict) else [name]

    assert set(rows) == set(names(yaml.safe_load(to_yaml(recipe("meddinov3", "stage1")))))
    assert [name for name, meaning in rows.items() if not meaning.strip()] == []
    (steps,) = re.findall(r"^\| `--engine.steps` .*$", page, re.MULTILINE)
    assert steps.endswith("| 1 `100000`<br>2 `10000`<br>3 `10000` |")


def test_variables_trainers_weights_and_python_are_complete(reference):
    declared = re.findall(r'EnvironmentVariable\(\s*"(\w+)"', (PROJECT / "nnunetv2_meddino/environment.py").read_text())
    assert re.findall(r"^\| `(\w+)`", reference["reference/environment.md"], re.MULTILINE) == declared
    assert re.findall(r"^\| `(\w+)`", reference["reference/trainers.md"], re.MULTILINE) == list(TRAINERS)
    assert re.findall(r"^## (\w+)", reference["reference/weights.md"], re.MULTILINE) == list(CATALOG)
    for name in PYTHON:
        assert "\n::: " in reference[f"reference/python/{name}.md"]


def test_pages_that_the_navigation_names_are_there_or_made(reference):
    navigation = (PROJECT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r"[\w/-]+\.md", navigation))
    made = {"index.md", "changes.md", *reference}
    assert {path for path in named - made if not (PROJECT / "docs" / path).is_file()} == set()
    assert made <= named


def test_prose_keeps_code_and_shows_the_rest_as_it_is():
    assert prose("see ``a|b`` and x_y,\n  <now>") == "see <code>a|b</code> and x\\_y, &lt;now&gt;"
