"""Every fenced command and sample of README and docs works, and the mistakes that are made in them are found."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.documentation.pages import SHELL, all_pages, blocks, command_lines
from tests.documentation.programs import check_requirement
from tests.documentation.trial import Outcome, Trial

PAGES = all_pages()
TRAIN, SUBMIT = (f"meddino-pretrain {verb} all --corpus /data/corpus --out R" for verb in ("train", "submit"))


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Trial(tmp_path_factory.mktemp("documentation"), monkeypatch)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_command_and_sample_works(trial, page):
    outcomes = trial.page(page)
    assert not (faults := [outcome for outcome in outcomes if outcome.fault]), "\n".join(map(str, faults))
    assert {outcome.how for outcome in outcomes} <= {"run", "dry", "read", "not a command"}
    tried = {outcome.line for outcome in outcomes}
    for block in blocks(page):
        lines = command_lines(block) if block.language in SHELL else [(block.line, "")]
        for line, text in lines:
            assert not tried.isdisjoint(range(line, line + text.count("\n") + 1)), f"{page}:{line} was not tried"


def faults_of(trial: Trial, text: str, language: str = "bash", page: str = "docs/mistaken.md") -> list[Outcome]:
    return [outcome for outcome in trial.page(page, f"# A page\n\n```{language}\n{text}\n```\n") if outcome.fault]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("meddino segment -d 900", "invalid choice"),
        ("meddino plan -d 900 --patch 512 --memory 24", "unrecognized arguments: --memory 24"),
        ("meddino evaluate -p predictions -r labelsTs", "required: -l"),
        ("meddino evaluate -p segmentations -r labelsTs -l dataset.json", "segmentations"),
        ("meddino weights convert model.pth x.safetensors --format ours", "invalid choice: 'ours'"),
        ("meddino plan -d 900 --overlay mixed1024", "mixed1024"),
        ("meddino features ct.nii.gz --weights meddinov3_vitb16 -o a.png", "no weights 'meddinov3_vitb16'"),
        (
            "meddino compare -d 219 --trainers MedDINOTrainer --configurations 2d --folds 0 --run",
            "MedDINOTrainer is unk",
        ),
        ("meddino compare -d 219 --sbatch-arguments=-Alab", "is for --submit"),
        ("meddino export $nnUNet_results/Dataset900_CTMini/MedDINOv3Trainer__nnUNetPlans__2d --stock", "finished fold"),
        ("nnUNetv2_train 900 2d 0 -tr MedDINOv4Trainer", "MedDINOv4Trainer"),
        ("nnUNetv2_train 900 2d_1024 0 -tr MedDINOv3Trainer", "2d_1024"),
        ("nnUNetv2_train 900 2d 5 -tr MedDINOv3Trainer", "fold 5"),
        ("MEDDINO_WEIGHTS=other.safetensors nnUNetv2_train 900 2d 0 -tr MedDINOv3Trainer", "no weights 'other"),
        (
            "meddino plan -d 900 --patch-size 512\nnnUNetv2_train 900 2d_512 0 -tr DINOv3Trainer",
            "nothing is preprocessed",
        ),
        (
            "meddino plan -d 900 --patch-size 512 --lazy-resample\nmeddino train 900 2d_512 0 -tr DINOv3Trainer",
            "Set MEDDINO_LOADER=whole_slice",
        ),
        ("nnUNetv2_preprocess -d 900 --plans nnUNetPlans -c 2d_896", "unrecognized arguments: --plans"),
        ("nnUNetv2_preprocess -d 900 -c 2d_1024", "2d_1024"),
        ("nnUNetv2_predict -d 900 -c 2d -f 0 -tr MedDINOv3Trainer -i IMAGES -o OUT", "No such file"),
        (f"{TRAIN} --recipe big", "no recipe 'big'"),
        (f"{TRAIN} --optim.learning-rate 1", "learning"),
        (f"{TRAIN} --config other.yaml", "other.yaml"),
        (f"{TRAIN.replace('/data/corpus', '/data/ct')}", "corpus.json"),
        (f"{TRAIN} --model.weights dinov3_vits16_lvd1689m", "is no vitb16"),
        (f"torchrun --nproc-per-node 7 --no-python {TRAIN}", "7 processes"),
        (f"torchrun --nproc-per-node 8 {TRAIN}", "--no-python"),
        (f"torchrun --nnodes 2 --nproc-per-node 8 --no-python {TRAIN}", "--rdzv-backend"),
        (f"{SUBMIT} --sbatch-arguments='--gpu 1'", "unrecognized arguments: --gpu"),
        ("--stage2.gram-teacher.teacher previous:30001", "previous:30001"),
        ("--stage2.gram-teacher.teacher other.safetensors", "no teacher other.safetensors"),
        ("meddino-pretrain export runs/vitb --out a.safetensors", "no teacher"),
        ("sbatch --gpu=1 --wrap 'meddino env'", "unrecognized arguments: --gpu"),
        ("sbatch --wrap 'meddino-pretrain merge /data/lits'", "exit code 2"),
        ("pip install -e '.[tests]'", "no extras tests"),
        ("pip install nnunet", "no test knows the package nnunet"),
        ("python -m pytests", "no test knows how to run python"),
        ("nnUNetv2_ensemble -i A B -o C", "no test knows how to run nnUNetv2_ensemble"),
        ("true", "bash calls nothing here"),
        ("meddino env | meddino 'plan", "bash ended with"),
        ("bin/meddino env", "bash ended with 127"),
        ("meddino-pretrain inspect $CORPUS", "CORPUS: unbound variable"),
        ("#!/bin/bash\n#SBATCH --gpus 1 --time=1:00\nmeddino env", "unrecognized arguments: --gpus"),
    ],
)
def test_wrong_commands_are_found(trial, command, why):
    (fault,) = faults_of(trial, command)
    assert why in fault.fault


def test_readme_must_tell_nnunet_where_the_trainers_are(trial):
    train = "nnUNetv2_train 900 2d 0 -tr MedDINOv3Trainer"
    (fault,) = faults_of(trial, train, page="README.md")
    assert "MedDINOv3Trainer" in fault.fault
    assert faults_of(trial, f'eval "$(meddino env)"\n{train}', page="README.md") == []


@pytest.mark.parametrize(
    ("language", "text", "why"),
    [
        ("", "nnunetv2_meddino/", "what a block of no language is"),
        ("text", "nnunetv2_meddino/", "what a block of text is"),
        ("toml", "a = 1", "what a block of toml is"),
        ("python", "from pretraining.curation.contamination import was_seen", "cannot import name 'was_seen'"),
        ("python", "x = 1\nprint(x)  # 1\nprint(x + 1)  # 3", "the page shows ['1', '3'], printed was ['1', '2']"),
        ("yaml", "name: clinic\nmodality: CT\nfiles: ['a']", "unknown fields files"),
        ("json", '{"configuration": {"2d_900": {"patch_size": [900, 900]}}}', "900"),
    ],
)
def test_wrong_samples_are_found(trial, language, text, why):
    (fault,) = faults_of(trial, text, language)
    assert why in fault.fault


def test_layout_names_files_that_are_there(trial):
    (fault,) = faults_of(trial, "nnunetv2_meddino/\n  cli.py  files.py", "text", page="docs/architecture.md")
    assert fault.fault == "DocumentationError: the tree has no cli.py"


def test_block_that_is_not_closed_is_found():
    with pytest.raises(ValueError, match="docs/a.md:1: the block is not closed"):
        blocks("docs/a.md", "```bash\nmeddino env\n")


def test_continuous_integration_finds_the_test_command():
    (line,) = (line for line in (PROJECT / ".ci" / "run").read_text().splitlines() if line.startswith("command=$("))
    found = subprocess.run(
        ["bash", "-c", f'{line}; echo "$command"'], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(found) == 1
    assert found[0] in [text for block in blocks("README.md") for _, text in command_lines(block)]


@pytest.mark.parametrize("page", PAGES)
def test_files_links_and_extras_are_there(page):
    text = (PROJECT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (PROJECT / Path(page).parent / target).exists(), f"{page} links to {target}"
    for program in re.findall(r"`python ([\w./]+\.py)", text):
        assert (PROJECT / program).is_file(), f"{page} runs {program}"
    for requirement in re.findall(r"nnunetv2-meddino\[\w+\]", text):
        check_requirement(requirement)
