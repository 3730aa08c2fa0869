"""Settings from recipe, file and command line: what counts, what texts mean, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config import STAGES
from pretraining.config.parse import from_dict, print_settings, read_yaml, stage_configurations, to_dict, to_yaml
from pretraining.config.recipes import RECIPES, recipe
from pretraining.schedules import Schedule
from pretraining.views.resolutions import Resolution

BASE = recipe("smoke", "stage1")
RESOLUTIONS = "[{global_size: 96, local_size: 32, gram_size: none, share: 1}]"


def typed(*arguments, stage="stage1"):
    (config,) = stage_configurations([stage], "smoke", None, arguments)
    return config


@pytest.fixture
def in_file(tmp_path):
    """Returns configurations from the text of a file."""

    def configurations(text, *stages, arguments=()):
        (tmp_path / "own.yaml").write_text(text)
        return stage_configurations(stages or ["stage1"], "smoke", tmp_path / "own.yaml", arguments)

    return configurations


def settings(values, prefix=""):
    """Yield dotted names and values of nested mappings."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_is_read_back_from_its_own_yaml(name, stage, tmp_path):
    config = recipe(name, stage)
    assert config.stage == stage
    monitor, optim = replace(config.monitor, probe_dataset=Path("a/b")), replace(config.optim, clip_norm=math.inf)
    config = replace(config, monitor=monitor, optim=optim)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert from_dict(read_yaml(tmp_path / "config.yaml"), "config.yaml") == config
    assert from_dict(to_dict(config), "a mapping") == config
    content = yaml.safe_load(to_yaml(config))
    assert list(content) == list(to_dict(config)), "in the order of the fields"


def test_every_setting_can_be_typed():
    other = recipe("im1k", "stage3")
    arguments = [
        f"--{name}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"
        for name, value in settings(to_dict(other))
    ]
    assert typed(*arguments, stage="stage3") == other


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("engine.steps", "2_000", 2000),
        ("data.seed", "-3", -3),
        ("engine.compile", "true", True),
        ("engine.compile", "False", False),
        ("model.weights", "1e-4", "1e-4"),
        ("model.weights", "none", "none"),
        ("model.weights", "true", "true"),
        ("monitor.probe-dataset", "a/b", Path("a/b")),
        ("monitor.probe_dataset", "none", None),
        ("monitor.wandb", "null", None),
        ("data.micro-batch-size", "4", 4),
        ("engine.precision", "float16", "float16"),
        ("views.global-scale", "0.3,1", (0.3, 1.0)),
        ("views.global-scale", "[0.3, 1]", (0.3, 1.0)),
        ("views.intensity.clip-hu", "-500, 1e3", (-500.0, 1000.0)),
        ("views.intensity.mean-hu", "-1e2", -100.0),
        ("views.intensity.windows-hu", "[[1, 2], [3, 4.5]]", ((1.0, 2.0), (3.0, 4.5))),
        ("data.source-weights", "[[a, 1]]", (("a", 1.0),)),
        ("data.source-weights", "[]", ()),
        ("resolutions", RESOLUTIONS, (Resolution(96, 32, None, 1.0),)),
        ("optim.lr", "1e-4", Schedule(1e-4, warmup_steps=4)),
        ("optim.lr.peak", "1e-4", Schedule(1e-4, warmup_steps=4)),
        ("optim.lr.warmup-steps", "5", Schedule(3e-3, warmup_steps=5)),
        ("optim.lr.end", "none", Schedule(3e-3, warmup_steps=4)),
        ("optim.lr", "{peak: 2, end: 1}", Schedule(2.0, end=1.0, warmup_steps=4)),
        ("optim.clip-norm", "inf", math.inf),
        ("optim.clip-norm", ".inf", math.inf),
    ],
)
def test_what_a_text_means(name, text, expected):
    config = typed(f"--{name}", text)
    assert typed(f"--{name}={text}") == config
    value = config
    for part in name.replace("-", "_").split(".")[: 2 if name.startswith("optim") else None]:
        value = getattr(value, part)
    assert (value, repr(value)) == (expected, repr(expected))  # 1 equals 1.0


def test_settings_are_checked_together_and_the_last_one_counts():
    config = typed("--engine.steps", "2", "--optim.lr", "1", "--engine.steps=70", "--optim.lr.warmup-steps", "70")
    assert (config.engine.steps, config.optim.lr) == (70, Schedule(1.0, warmup_steps=70))
    assert typed("--optim.lr.warmup-steps", "70", "--engine.steps", "70", "--optim.lr", "1") == config


def test_command_line_outweighs_file_and_file_the_recipe(in_file):
    text = "stage2: {optim: {lr: 7e-4}}\noptim: {lr: 1e-3, clip_norm: 5}\ndata: {batch_size: 32}\nstage1:\n"
    arguments = ["--data.batch-size", "64", "--stage2.data.seed=3"]
    first, second = in_file(text, "stage1", "stage2", arguments=arguments)
    assert (first.optim.lr.peak, second.optim.lr.peak) == (1e-3, 7e-4)
    assert first.optim.lr.warmup_steps == 4, "the rest of a schedule stays"
    assert (first.optim.clip_norm, first.data.batch_size) == (5.0, 64)
    assert (first.data.seed, second.data.seed) == (0, 3)
    assert (first.stage, second.stage) == ("stage1", "stage2")
    assert typed("--stage", "stage2").stage == "stage1"


@pytest.mark.parametrize("stage", ["stage2.", "stage1.", ""])
def test_setting_of_one_stage_leaves_the_other(stage):
    first, second = stage_configurations(STAGES[:2], "smoke", None, [f"--{stage}optim.clip-norm", "9"])
    assert [c.optim.clip_norm == 9 for c in (first, second)] == [stage != "stage2.", stage != "stage1."]


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("# nothing yet\n", {}),
        ("engine: {steps: 70, compile: yes}", {"engine": {"steps": 70, "compile": True}}),
        ("engine: {steps: '70'}", {"engine": {"steps": 70}}),
        ("model: {weights: no}", {"model": {"weights": "no"}}),
        ("monitor: {wandb: 5, probe_dataset: ~}", {"monitor": {"wandb": "5"}}),
        ("optim: {clip_norm: .inf, betas: [0.5, 6e-1]}", {"optim": {"clip_norm": math.inf, "betas": (0.5, 0.6)}}),
        ("stage2: {optim: &o {layer_decay: 0.5}}\nstage1: {optim: {<<: *o}}", {"optim": {"layer_decay": 0.5}}),
    ],
)
def test_a_file_changes_only_what_it_holds(in_file, text, changes):
    (config,) = in_file(text)
    sections = {name: replace(getattr(BASE, name), **values) for name, values in changes.items()}
    assert config == replace(BASE, **sections)


@pytest.mark.parametrize("where", ["file", "command line", "config.yaml"])
def test_names_of_the_release_before_are_read(in_file, caplog, where):
    if where == "file":
        (config,) = in_file("optim: {gram_loss_weight: 2}\nstage1: {optim: {local_loss_weight: {peak: 3, start: 1}}}")
    elif where == "command line":
        config = typed("--optim.gram-loss-weight", "2", "--stage1.optim.local-loss-weight={peak: 3, start: 1}")
    else:
        config = from_dict({"optim": {"gram_loss_weight": 2, "local_loss_weight": {"peak": 3, "start": 1}}}, "x", BASE)
    assert (config.losses.gram_weight, config.losses.local_weight) == (Schedule(2.0), Schedule(3.0, start=1.0))
    notes = (
        "optim.gram_loss_weight is now called losses.gram_weight;",
        "stage1.optim.local_loss_weight.start is now called stage1.losses.local_weight.start;",
    )
    assert [note in caplog.text for note in notes] == [where != "config.yaml"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.clip-morm", "1"], r"no option optim\.clip_morm\. Did you mean optim\.clip_norm\?"),
        (["--gram-size", "64"], r"no option gram_size\. Did you mean views\.gram_size\?"),
        (["--view.gram-size", "64"], r"no option view\.gram_size\. Did you mean views\.gram_size\?"),
        (["--zzz", "1"], r"no option zzz\. meddino-pretrain train stage1 --help lists all"),
        (["--optim.zzz", "1"], r"no option optim\.zzz\. optim has lr, lr_scaling"),
        (["--zzz"], "no option zzz"),
        (["--engine.steps.more", "1"], r"no option engine\.steps\.more"),
        (["--stage1.zzz", "1"], "no option zzz"),
        (["--stage1", "1"], "no option stage1"),
        (["--engine.steps", "many"], r"engine\.steps must be INTEGER, not 'many'"),
        (["--engine.steps", "1.5"], "must be INTEGER"),
        (["--engine.steps", "1e3"], "must be INTEGER"),
        (["--engine.steps", "true"], "must be INTEGER"),
        (["--engine.compile", "1"], r"engine\.compile must be true\|false, not '1'"),
        (["--engine.precision", "float8"], r"engine\.precision must be bfloat16\|float16\|float32, not 'float8'"),
        (["--optim.lr", "fast"], r"optim\.lr must be NUMBER, not 'fast'"),
        (["--optim.clip-norm", "nan"], "must be NUMBER"),
        (["--optim.betas", "0.9"], r"optim\.betas must be NUMBER,NUMBER, not '0\.9'"),
        (["--optim.betas", "0.9,x"], "must be NUMBER,NUMBER"),
        (["--optim.betas", "1,2,3"], "must be NUMBER,NUMBER"),
        (["--model.weights", "null"], "must be TEXT"),
        (["--views.gram-size", "x"], r"views\.gram_size must be INTEGER\|none, not 'x'"),
        (["--views.intensity.windows-hu", "40,400"], r"must be \[NUMBER,NUMBER, \.\.\.\]"),
        (["--resolutions", "[{global_size: 96}]"], r"resolutions must be \[\{global_size: INTEGER, .*share: NUMBER\}"),
        (["--resolutions", "[{"], "resolutions must be"),
        (["--views", "3"], r"views is a section of \d+ settings"),
        (["--views", "{x"], "views is not YAML"),
        (["--views.global-size", "65"], "views: global_size 65 must be a multiple of 16"),
        (["--optim.lr.warmup-steps", "-1"], r"optim\.lr: schedule: warmup_steps -1 must be at least 0"),
        (["--optim.clip_norm", "2", "--model.dino-head.prototypes", "0"], r"model\.dino_head: head: prototypes 0 must"),
        (["--engine.steps"], r"--engine\.steps needs a value"),
        (["--engine.compile", "--engine.steps", "1"], r"--engine\.compile needs a value"),
        (["engine.steps", "1"], r"unexpected 'engine\.steps'"),
        (["--", "1"], "unexpected '--'"),
    ],
)
def test_refuses_on_the_command_line(arguments, message):
    with pytest.raises(ConfigurationError, match=f"^command line: .*{message}"):
        typed(*arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {clip_morm: 1}", r"no option optim\.clip_morm\. Did you mean optim\.clip_norm\?"),
        ("optim: {lr: {stert: 1}}", r"no option optim\.lr\.stert\. Did you mean optim\.lr\.start\?"),
        ("stage1: {optm: {lr: 1}}", r"no option optm\.lr\. Did you mean optim\.lr\?"),
        ("5: 6", "no option 5"),
        ("optim:", "optim is a section"),
        ("- steps", "settings must be given by section"),
        ("engine: {steps: 1.0}", "must be INTEGER"),
        ("engine: {steps: null}", "must be INTEGER"),
        ("data: {source_weights: x}", "must be"),
        ("data: {source_weights: [{1: a, 2: b}]}", "must be"),
        ("optim: {betas: [0.9, 0.99, 0.999]}", "must be NUMBER,NUMBER"),
        ("views: {gram_size: 65}", "views: gram_size 65 must be a multiple of 16"),
        ("engine:\n  steps: 1\n  steps: 2", r"duplicate key 'steps'\n +in .*own\.yaml\", line 3"),
        ("views: {gram_size: 64, gram-size: 80}", "duplicate key 'gram-size'"),
        ("engine: [", "cannot be read as YAML"),
    ],
)
def test_refuses_in_a_file(in_file, text, message):
    with pytest.raises(ConfigurationError, match=rf"(?s)own\.yaml.*{message}"):
        in_file(text)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_help_explains_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_settings(recipe("smoke", "stage3"), "smoke")
    shown = capsys.readouterr().out
    words = " ".join(shown.replace("│", " ").split())
    entries = {entry.split()[0]: entry for entry in words.split(" --")[1:]}
    for name, _ in settings(to_dict(BASE)):
        entry = entries[name.removesuffix(".peak").replace("_", "-")]
        assert len(entry.split(" ", 2)[2].partition("(default: ")[0]) > 10, name
    assert "default: 0.0002" in entries["optim.lr"], "values are the recipe's"
    assert "default: 0.9,0.95" in entries["optim.betas"].replace(", ", ",")
    assert "default: false" in entries["engine.compile"]
    assert "default: none" in entries["monitor.wandb"]
