"""Settings from files and the command line into dataclasses that know nothing of either."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from nnunetv2_meddino.errors import ConfigurationError
from pretraining.config.settings import describe, from_dict, override, parse_overrides, read_yaml, save_yaml, to_dict


def load_yaml(path, cls, base=None):
    return from_dict(cls, read_yaml(path), str(path), base)


@dataclass(frozen=True)
class Ramp:
    """A value that changes.

    Attributes:
        level: where it goes.
        steps: how long it takes.
        end: what follows.
    """

    MAIN_FIELD: ClassVar[str] = "level"

    level: float
    steps: int = 0
    end: float | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigurationError(f"ramp: steps {self.steps} must be at least 0")


@dataclass(frozen=True)
class Size:
    name: str
    pixels: int
    factor: float = 1.0


@dataclass(frozen=True)
class Views:
    """Pictures.

    Some words before, with a colon: here.

    Attributes:
        gram_size: side of a crop
            in pixels: a multiple of 16.

            - a list in it
        global_scale: smallest and largest.
        mode: which of two.

    Examples:
        mode: this line is no option.
    """

    gram_size: int | None = None
    global_scale: tuple[float, float] = (0.32, 1.0)
    mode: Literal["none", "fast"] = "none"
    windows: tuple[tuple[float, float], ...] = ((40.0, 400.0),)

    def __post_init__(self) -> None:
        if self.gram_size is not None and self.gram_size % 16:
            raise ConfigurationError(f"views: gram_size {self.gram_size} must be a multiple of 16")


@dataclass(frozen=True)
class Optim:
    lr: Ramp = Ramp(1e-3, steps=10)
    betas: tuple[float, float] = (0.9, 0.999)
    extra: Ramp | None = None
    clip: float = 3.0


@dataclass(frozen=True)
class Config:
    """All of it.

    Attributes:
        steps: how long.
    """

    steps: int = 100
    compile: bool = True
    weights: str = "none"
    folder: Path | None = None
    sizes: tuple[Size, ...] = ()
    names: tuple[str, ...] = ()
    views: Views = field(default_factory=Views)
    optim: Optim = field(default_factory=Optim)
    hidden: int = field(init=False, default=3)

    def __post_init__(self) -> None:
        if self.steps < (self.views.gram_size or 0):
            raise ConfigurationError(f"steps {self.steps} must be at least gram_size {self.views.gram_size}")


RICH = Config(
    steps=2000,
    compile=False,
    weights="no",
    folder=Path("a/b"),
    sizes=(Size("one", 16), Size("two", 32, 0.5)),
    names=("x", "y"),
    views=Views(512, (0.25, 0.5), "fast", ((40.0, 400.0), (-600.0, 1500.0))),
    optim=Optim(Ramp(1e-5, 0, 1e-7), (0.5, 0.75), Ramp(2.0), math.inf),
)


@pytest.mark.parametrize("config", [Config(), RICH])
class TestRoundTrips:
    def test_dictionary(self, config):
        assert from_dict(Config, to_dict(config)) == config

    def test_file(self, config, tmp_path):
        save_yaml(config, tmp_path / "run.yaml")
        assert load_yaml(tmp_path / "run.yaml", Config) == config
        assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]

    def test_file_is_plain_yaml_in_the_order_of_the_fields(self, config, tmp_path):
        save_yaml(config, tmp_path / "run.yaml")
        content = yaml.safe_load((tmp_path / "run.yaml").read_text())
        assert content == to_dict(config)
        assert list(content) == ["steps", "compile", "weights", "folder", "sizes", "names", "views", "optim"]

    def test_described_values_are_what_the_command_line_takes(self, config):
        base = Config(optim=Optim(lr=Ramp(0.0)))  # what a described value leaves out is the dataclass' default
        assert parse_overrides(base, [f"--{option.name}={option.default}" for option in describe(config)]) == config


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("steps", "2_000", Config(steps=2000)),
        ("compile", "false", Config(compile=False)),
        ("weights", "1e-4", Config(weights="1e-4")),
        ("weights", "none", Config(weights="none")),
        ("folder", "a/b", Config(folder=Path("a/b"))),
        ("names", "x, y", Config(names=("x", "y"))),
        ("names", "[]", Config()),
        ("views.gram-size", "64", Config(views=Views(gram_size=64))),
        ("views.gram_size", "none", Config()),
        ("views.mode", "fast", Config(views=Views(mode="fast"))),
        ("views.mode", "none", Config()),
        ("views.global-scale", "0.3,1", Config(views=Views(global_scale=(0.3, 1.0)))),
        ("views.windows", "[[1, 2], [3, 4.5]]", Config(views=Views(windows=((1.0, 2.0), (3.0, 4.5))))),
        ("sizes", "[{name: a, pixels: 3}]", Config(sizes=(Size("a", 3),))),
        ("optim.lr", "1e-4", Config(optim=Optim(lr=Ramp(1e-4, steps=10)))),
        ("optim.lr.steps", "5", Config(optim=Optim(lr=Ramp(1e-3, steps=5)))),
        ("optim.lr", "{level: 2, end: 1}", Config(optim=Optim(lr=Ramp(2.0, steps=10, end=1.0)))),
        ("optim.extra", "4", Config(optim=Optim(extra=Ramp(4.0)))),
        ("optim.clip", "inf", Config(optim=Optim(clip=math.inf))),
        ("optim.clip", "-1e2", Config(optim=Optim(clip=-100.0))),
    ],
)
def test_override(name, text, expected):
    changed = override(Config(), name, text)
    assert changed == expected
    assert repr(changed) == repr(expected)  # 1 equals 1.0
    assert parse_overrides(Config(), [f"--{name}", text]) == parse_overrides(Config(), [f"--{name}={text}"]) == expected


def test_none_takes_a_value_away():
    assert override(RICH, "folder", "none").folder is None
    assert override(RICH, "optim.extra", "none").optim.extra is None
    assert override(RICH, "optim.lr.end", "none").optim.lr == Ramp(1e-5)


def test_overrides_are_checked_together_and_the_last_one_counts():
    changed = parse_overrides(Config(), ["--views.gram-size", "512", "--steps", "1", "--steps", "600"])
    assert (changed.steps, changed.views.gram_size) == (600, 512)


@pytest.mark.parametrize("order", [1, -1])
def test_a_group_and_its_main_field_join_in_any_order(order):
    pairs = [("--optim.lr", "0.5"), ("--optim.lr.end", "0.25")][::order]
    changed = parse_overrides(Config(), [word for pair in pairs for word in pair])
    assert changed.optim.lr == Ramp(0.5, steps=10, end=0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optim.clap", "1"], r"no option optim\.clap\. Did you mean optim\.clip\?"),
        (["--gram-size", "64"], r"no option gram_size\. Did you mean views\.gram_size\?"),
        (["--view.gram-size", "64"], r"no option view\. Did you mean views\?"),
        (["--zzz", "1"], r"no option zzz\. Known here: steps, compile"),
        (["--steps.more", "1"], r"no option steps\.more"),
        (["--hidden", "1"], "no option hidden"),
        (["--steps", "many"], "steps must be a whole number, not 'many'"),
        (["--steps", "1.5"], "steps must be a whole number, not 1.5"),
        (["--steps", "true"], "steps must be a whole number, not True"),
        (["--compile", "1"], "compile must be true or false, not 1"),
        (["--optim.lr", "fast"], r"optim\.lr\.level must be a number, not 'fast'"),
        (["--optim.betas", "0.9"], r"optim\.betas must be a list of 2 \(a number, a number\), not \['0\.9'\]"),
        (["--optim.betas", "0.9,x"], r"optim\.betas\[1\] must be a number, not 'x'"),
        (["--views.mode", "slow"], r"views\.mode must be one of none, fast, not 'slow'"),
        (["--views.gram-size", "x"], r"views\.gram_size must be a whole number, or none, not 'x'"),
        (["--sizes", "[{name: a}]"], r"sizes\[0\]\.pixels is missing"),
        (["--sizes", "[{"], "sizes must be a list, each options by their names, not '"),
        (["--views", "3"], "views must be options by their names, not 3"),
        (["--views.gram-size", "65"], "views: gram_size 65 must be a multiple of 16"),
        (["--optim.lr.steps", "-1"], r"optim\.lr: ramp: steps -1 must be at least 0"),
        (["--steps", "5", "--views.gram-size", "16"], "steps 5 must be at least gram_size 16"),
        (["--steps"], "--steps lacks its value"),
        (["--compile", "--steps", "1"], "--compile lacks its value"),
        (["steps", "1"], "'steps' is no option"),
        (["--", "1"], "'--' is no option"),
    ],
)
def test_refuses_on_the_command_line(arguments, message):
    with pytest.raises(ConfigurationError, match=f"^command line: .*{message}"):
        parse_overrides(Config(), arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {clap: 1}", r"run\.yaml: there is no option optim\.clap\. Did you mean optim\.clip\?"),
        ("optim: {lr: {lefel: 1}}", r"no option optim\.lr\.lefel\. Did you mean optim\.lr\.level\?"),
        ("5: 6", "no option 5"),
        ("optim:", r"optim must be options by their names, not None"),
        ("- steps", r"run\.yaml: the content must be options by their names"),
        ("weights: no", "weights must be a text, not False"),
        ("steps: 1.0", r"steps must be a whole number, not 1\.0"),
        ("steps: null", "steps must be a whole number, not None"),
        ("names: x", "names must be a list, each a text, not 'x'"),
        ("optim: {betas: [0.9, 0.99, 0.999]}", "must be a list of 2"),
        ("views: {gram_size: 65}", r"run\.yaml: views: gram_size 65 must be a multiple of 16"),
        ("steps: 1\nsteps: 2", "'steps' stands twice"),
        ("steps: [", "cannot be read as YAML"),
    ],
)
def test_refuses_in_a_file(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_yaml(tmp_path / "run.yaml", Config)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"none\.yaml cannot be read"):
        load_yaml(tmp_path / "none.yaml", Config)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"run\.yaml cannot be written: Not a directory"):
        save_yaml(Config(), tmp_path / "file" / "missing" / "run.yaml")


def test_a_file_changes_only_what_it_holds(tmp_path):
    (tmp_path / "run.yaml").write_text("steps: 3000\noptim: {lr: 1e-4, clip: 2}\nviews:\n  gram_size: none\n")
    expected = replace(
        RICH,
        steps=3000,
        optim=replace(RICH.optim, lr=replace(RICH.optim.lr, level=1e-4), clip=2.0),
        views=replace(RICH.views, gram_size=None),
    )
    assert load_yaml(tmp_path / "run.yaml", Config, RICH) == expected


def test_empty_file_changes_nothing(tmp_path):
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert load_yaml(tmp_path / "run.yaml", Config, RICH) == RICH
    assert load_yaml(tmp_path / "run.yaml", Config) == Config()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_yaml(RICH, tmp_path / "run.yaml")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ConfigurationError, match="No space left"):
        save_yaml(Config(), tmp_path / "run.yaml")
    assert load_yaml(tmp_path / "run.yaml", Config) == RICH
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_describe():
    options = {option.name: option for option in describe(Config())}
    assert list(options)[:6] == ["steps", "compile", "weights", "folder", "sizes", "names"]
    assert options["steps"].doc == "how long."
    assert options["compile"].doc == ""
    assert options["views.gram_size"].doc == "side of a crop in pixels: a multiple of 16. - a list in it"
    assert options["views.mode"].doc == "which of two."
    defaults = {name: option.default for name, option in options.items()}
    assert defaults == {
        "steps": "100",
        "compile": "true",
        "weights": "none",
        "folder": "none",
        "sizes": "[]",
        "names": "[]",
        "views.gram_size": "none",
        "views.global_scale": "0.32,1.0",
        "views.mode": "none",
        "views.windows": "[[40.0, 400.0]]",
        "optim.lr": "{level: 0.001, steps: 10}",
        "optim.betas": "0.9,0.999",
        "optim.extra": "none",
        "optim.clip": "3.0",
    }
    assert describe(Ramp(1e-5))[0] == ("level", "1e-05", "where it goes.")
