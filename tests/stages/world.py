"""A small world in which the whole path runs in seconds: models, rows, a workspace, commands.

Models have random weights and a tokenizer of made-up words, enough of them for the audit's
canaries.  `base()` makes a workspace with two sealed data sets once a session, `released()` goes
on to a released adapter; tests that change something work on a copy of their own (`World.copied`).
The audit's control, which takes seconds and depends on nothing in the world, is shared by all
copies: their `cache` is a link to one folder.

Commands run in this process through click's runner, which gives exit code, stdout and stderr as a
shell would see them.  Only `lock_down` is left out, since it is for good and this process has other
tests to run; `tests/test_hardening.py` and `tests/stages/test_escape.py` see it in a process of its
own.
"""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from privft.budget.ledger import Ledger
from privft.cli import main
from privft.errors import PrivftError
from privft.workspace import Workspace

SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su")
WORDS = tuple(sorted(a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:2]))
LABELS = ("card", "cash", "loan")
DECLARED = 1000

RUN = """\
name: tiny
task: causal-lm
dataset: notes
synthetic: true
model: {{name_or_path: llama}}
max_length: 32
lora: {{r: 2, lora_alpha: 4}}
privacy:
  unit: subject
  declared_units: 1000
  {price}
  max_grad_norm: 0.3
  expected_batch_size: 50
  max_steps: {steps}
  max_records_per_unit: 2
training: {{learning_rate: 2.0e-2}}
performance: {{threads: 1, checkpoint_every: 2}}
evaluation: {{public_file: public.jsonl, max_records: 20}}
"""
CLASSIFY = """\
name: tiny-intents
task: sequence-classification
dataset: intents
synthetic: true
model: {{name_or_path: bert}}
labels: [card, cash, loan]
max_length: 24
lora: {lora}
privacy:
  unit: record
  declared_units: 1000
  noise_multiplier: 0.8
  max_grad_norm: 0.3
  expected_batch_size: 50
  max_steps: 3
training: {{learning_rate: 2.0e-2}}
performance: {{threads: 1}}
evaluation: {{public_file: intents.jsonl, max_records: 20}}
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command did, as a shell sees it; `error` is the exception behind a failure."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed on stdout, which must be one JSON value and nothing else."""
        return json.loads(self.out)


@dataclass(frozen=True, kw_only=True)
class World:
    """A folder with models, rows, configs, and `workspace/`."""

    folder: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.folder / "workspace")

    def ledger(self) -> Ledger:
        return self.workspace.ledger()

    def kinds(self) -> list[str]:
        """The kinds of all entries of the ledger, in order."""
        with self.ledger() as ledger:
            return [entry.kind for entry in ledger.entries()]

    def runs(self) -> list[str]:
        with self.ledger() as ledger:
            return [record.run for record in ledger.runs()]

    def privft(self, *arguments: str | Path, code: int = 0, stdin: str | None = None) -> Result:
        """Run a command on this workspace; fails the test unless it ends with `code`."""
        return privft("--workspace", self.folder / "workspace", *arguments, code=code, stdin=stdin)

    def config(self, name: str = "run", *, steps: int = 4, noise: float = 0.8) -> Path:
        """A config for the notes, whose price needs no calibration."""
        path = self.folder / f"{name}.yaml"
        path.write_text(RUN.format(price=f"noise_multiplier: {noise}", steps=steps))
        return path

    def planned(self, name: str = "run", **changes: Any) -> Path:
        self.privft("plan", self.config(name, **changes))
        return self.folder / f"{name}.plan"

    def trained(self, name: str = "run", **changes: Any) -> str:
        return str(self.privft("train", self.planned(name, **changes), "--json").json["run"])

    def copied(self, to: Path) -> World:
        shutil.copytree(self.folder, to, symlinks=True)
        return World(folder=to)


def privft(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> Result:
    """Run a command in this process; fails the test unless it ends with `code`."""
    with mock.patch("privft.hardening.lock_down"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as lock_down does
        done = CliRunner().invoke(main, [str(each) for each in arguments], input=stdin)
    torch.set_num_threads(1)
    shown = f"privft {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    assert done.exit_code == code, f"exit code {done.exit_code}, expected {code}: {shown}"
    return Result(code=done.exit_code, out=done.stdout, err=done.stderr)


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path inside, and every empty folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
        if not path.is_symlink()
    }


def tokenizer() -> PreTrainedTokenizerFast:
    numbers = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    numbers |= {word: 4 + i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


SHAPE: dict[str, Any] = {
    "vocab_size": 4 + len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def save_models(folder: Path) -> None:
    torch.manual_seed(0)
    llama = LlamaConfig(**SHAPE, num_key_value_heads=1, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    BertModel(BertConfig(**SHAPE), add_pooling_layer=False).save_pretrained(folder / "bert")
    for name in ("llama", "bert"):
        tokenizer().save_pretrained(folder / name)


def sentence(rng: random.Random, words: Sequence[str] = WORDS) -> str:
    return " ".join(rng.choices(words, k=rng.randint(5, 12)))


def note_rows(*, patients: int = 40, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"patient": f"p{seed}-{p}", "id": f"n{seed}-{p}-{n}", "note": sentence(rng)}
        for p in range(patients)
        for n in range(1 + p % 3)
    ]


def intent_rows(*, count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """Records whose label shows in the words."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % len(LABELS)
        text = sentence(rng, WORDS[label :: len(LABELS)][:20])
        rows.append({"id": f"i{seed}-{number}", "text": text, "intent": LABELS[label]})
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


NOTES = ("--text", "note", "--subject", "patient", "--id", "id", "--unit", "subject")
INTENTS = ("--text", "text", "--label", "intent", "--id", "id", "--unit", "record")
SIZE = ("--declared-units", str(DECLARED), "--held-out-share", "0.2")


@cache
def _session_folder() -> Path:
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="privft-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def base() -> World:
    """Models, rows, and a workspace of ada's with two sealed data sets; not to be changed."""
    world = World(folder=_session_folder() / "base")
    world.folder.mkdir()
    save_models(world.folder)
    write_rows(world.folder / "notes.jsonl", note_rows())
    write_rows(world.folder / "public.jsonl", note_rows(patients=20, seed=9))
    write_rows(world.folder / "intents.jsonl", intent_rows())
    privft("init", world.folder / "workspace", "--name", "ada")
    shared_cache = _session_folder() / "cache"
    shared_cache.mkdir()
    (world.folder / "workspace" / "cache").symlink_to(shared_cache)
    for dataset, columns in (("notes", NOTES), ("intents", INTENTS)):
        source = world.folder / f"{dataset}.jsonl"
        world.privft("vault", "create", dataset, "--from", source, *columns, *SIZE)
    return world


@cache
def released() -> tuple[World, str]:
    """A world in which the notes were trained on, audited and released to `released/`, and the
    run's id; not to be changed."""
    world = base().copied(_session_folder() / "released")
    run = world.trained()
    world.privft("audit", run)
    world.privft("release", run, "--to", world.folder / "released")
    return world, run


def fail_the_control(world: World) -> None:
    """Put a control that found nothing into the world's own cache, so that its audits fail."""
    base().privft("--help")
    kept = _session_folder() / "cache"
    link = world.folder / "workspace" / "cache"
    link.unlink()
    link.mkdir()
    released()  # made sure that there is a control
    for path in kept.glob("control-*.json"):
        body = json.loads(path.read_text())
        result = body["result"]
        result |= {"ok": False, "kinds": {kind: 0.0 for kind in result["kinds"]}}
        (link / path.name).write_text(json.dumps(body))


def expect(error: type[PrivftError], result: Result) -> None:
    """The two lines of an error, on stderr, and nothing on stdout."""
    lines = [line for line in result.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert lines, result.err
    assert lines[0].startswith("error: ")
    assert result.code == error.exit_code
    assert result.out == ""
