"""A small world in which the whole path runs in seconds: models, rows, a workspace, commands.

Models have random weights and a tokenizer of made-up words, enough of them for the audit's
canaries.  `base()` makes a workspace with two sealed data sets once a session, `released()` goes
on to a released adapter; tests that change something work on a copy of their own (`World.copied`).
The audit's control, which takes seconds and depends on nothing in the world, is shared by all
copies: their `cache` is a link to one folder.

Commands run in this process through click's runner, which gives exit code, stdout and stderr as a
shell would see them.  `lock_down` is left out, since it is for good and this process has other
tests to run; `tests/test_hardening.py` and `tests/stages/test_escape.py` see it in a process of its
own.  The attack on the mechanism before each run, which takes seconds, is real in `released()` and
left out elsewhere (`unchecked`); `tests/audit/test_selfcheck.py` is about it.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from privft.audit.selfcheck import Check
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
    """What a command did, as a shell sees it."""

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

    def privft(
        self, *arguments: str | Path, code: int | None = 0, stdin: str | None = None
    ) -> Result:
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

    def trained(self, name: str = "run", *, who: str = "ada", **changes: Any) -> str:
        self.privft("plan", self.config(name, **changes), "--as", who)
        plan = self.folder / f"{name}.plan"
        with unchecked():
            return str(self.privft("train", plan, "--as", who, "--json").json["run"])

    def released(self, run: str, name: str = "out") -> Path:
        """Audit and release a run; the folder."""
        self.privft("audit", run)
        self.privft("release", run, "--to", self.folder / name)
        return self.folder / name

    def copied(self, to: Path) -> World:
        shutil.copytree(self.folder, to, symlinks=True)
        return World(folder=to)


@contextmanager
def unchecked() -> Iterator[None]:
    """Runs start without the attack on the mechanism."""
    stand_in = [Check(check="left out", ok=True, detail="in this test")]
    with mock.patch("privft.stages.running.check_mechanism", return_value=stand_in):
        yield


def privft(*arguments: str | Path, code: int | None = 0, stdin: str | None = None) -> Result:
    """Run a command in this process; fails the test unless it ends with `code`."""
    umask = os.umask(0o077)  # as lock_down does, and so are warnings ignored
    try:
        with mock.patch("privft.hardening.lock_down"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(main, [str(each) for each in arguments], input=stdin)
    finally:
        os.umask(umask)
        torch.set_num_threads(1)
    shown = f"privft {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    assert code in (None, done.exit_code), f"exit code {done.exit_code}, expected {code}: {shown}"
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


@dataclass(frozen=True, kw_only=True)
class Released:
    """The notes, trained on, audited and released to `folder`, with nothing left out; `said` has
    what each command printed as JSON.  Not to be changed."""

    world: World
    run: str
    folder: Path
    said: Mapping[str, Any]


@cache
def released() -> Released:
    world = base().copied(_session_folder() / "released")
    config, folder = world.folder / "run.yaml", world.folder / "out"
    config.write_text(RUN.format(price="target_epsilon: 1.5", steps=4))
    said = {"config": world.privft("config", "validate", config, "--json").json}
    said["plan"] = world.privft("plan", config, "--json").json
    said["policy"] = world.privft("policy", "check", said["plan"]["file"], "--json").json
    said["train"] = world.privft("train", said["plan"]["file"], "--json").json
    run = said["train"]["run"]
    said["audit"] = world.privft("audit", run, "--json").json
    said["release"] = world.privft("release", run, "--to", folder, "--json").json
    said["verify"] = world.privft("verify", folder, "--json").json
    return Released(world=world, run=run, folder=folder, said=said)


def fail_the_control(world: World) -> None:
    """Give the world a kept control that found nothing, so that its audits fail."""
    released()  # a real one is there now
    kept = world.folder / "workspace" / "cache"
    (good,) = kept.glob("control-*-causal-lm.json")
    body = json.loads(good.read_text())
    body["result"] |= {"ok": False, "kinds": dict.fromkeys(body["result"]["kinds"], 0.0)}
    published = (kept / "published.json").read_text()
    kept.unlink()
    kept.mkdir()
    (kept / "published.json").write_text(published)
    (kept / good.name).write_text(json.dumps(body))


def expect(error: type[PrivftError], result: Result) -> None:
    """The two lines of an error, on stderr, and nothing on stdout."""
    lines = [line for line in result.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert lines, result.err
    assert lines[0].startswith("error: ")
    assert result.code == error.exit_code
    assert result.out == ""
