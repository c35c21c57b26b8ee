"""`privft demo`: the whole path on made-up notes, through the very commands that a person types.

It makes a few thousand synthetic patients, seals their notes in a vault, prices a run, trains a
LoRA adapter on a real pretrained model with the patient as the unit, audits it, releases it, and
verifies the release; then it asks for a second run that the budget does not admit, to show the
refusal.  Nothing is faked: each line that begins with `$` is run as shown, in this process.

    FOLDER/
      notes.jsonl, held-out.jsonl    synthetic plaintext, marked as such in every id
      policy.yaml                    the policy, an overlay on a shipped one
      run.yaml, second.yaml          the two configs
      workspace/                     ledger, keys, vault, runs
      released/                      what left through the door
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path

from privft import synthetic
from privft.errors import PrivftError, UsageError

PATIENTS = 6000
HELD_OUT_PATIENTS = 300
SEED = 2026
DATASET = "demo-notes"

_RUN = f"""\
# What the demo trains.  Every key is explained by: privft config schema
name: demo
task: causal-lm
dataset: {DATASET}
synthetic: true                  # the notes are made up, and every output says so
model:
  name_or_path: builtin:smollm2-135m-instruct
  dtype: float32                 # bfloat16 halves memory; its speed depends on the CPU
max_length: 64
lora:
  r: 4
  lora_alpha: 8
  target_modules: all-linear
  layers_to_transform: [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]
privacy:
  unit: subject                  # one patient, with all notes
  declared_units: {PATIENTS}
  target_epsilon: 3.0
  max_grad_norm: 0.3
  expected_batch_size: 96
  max_steps: 14
  max_records_per_unit: 1        # in a step; which one is chosen by the run's generator
training:
  learning_rate: 5.0e-3
performance:
  checkpoint_every: 5
audit:
  suite: quick
evaluation:
  public_file: held-out.jsonl    # generated too, and of nobody
  max_records: 150
"""

_POLICY = """\
# An overlay: it stands on a shipped policy and may only tighten it.
version: 1
name: demo
extends: default
purpose: made-up notes of the demo, with room for one run and not for two
total_epsilon:
  value: 6.0
  why: the demo's first run needs 5.8 of it by the filter, so that its second run has to be refused
  source: privft's own choice, for show
"""


def run_demo(folder: Path, *, say: Callable[[str], None]) -> None:
    """Run it all in `folder`, which must not exist; ends by saying where the report is."""
    if folder.exists():
        raise UsageError(f"{folder} exists", hint=f"rm -r {folder}, or --folder ANOTHER")
    started = time.monotonic()
    folder.mkdir(mode=0o700, parents=True)
    say(f"making {PATIENTS} synthetic patients (seed {SEED}); nobody is in them")
    synthetic.write_jsonl(folder / "notes.jsonl", synthetic.generate(SEED, PATIENTS))
    held_out = synthetic.generate(SEED, HELD_OUT_PATIENTS, part="held-out", most_notes=1)
    synthetic.write_jsonl(folder / "held-out.jsonl", held_out)
    (folder / "policy.yaml").write_text(_POLICY, encoding="utf-8")
    (folder / "run.yaml").write_text(_RUN, encoding="utf-8")
    (folder / "second.yaml").write_text(_RUN.replace("name: demo", "name: demo-second"))

    workspace = ["--workspace", str(folder / "workspace")]
    _command(say, ["init", str(folder / "workspace"), "--name", "ada"])
    columns = ["--text", "text", "--subject", "patient_id", "--id", "note_id"]
    units = ["--unit", "subject", "--declared-units", str(PATIENTS), "--held-out-share", "0.02"]
    notes = ["--from", str(folder / "notes.jsonl"), "--policy", str(folder / "policy.yaml")]
    _command(say, [*workspace, "vault", "create", DATASET, *notes, *columns, *units])
    _command(say, [*workspace, "plan", str(folder / "run.yaml")])
    _command(say, [*workspace, "train", str(folder / "run.plan")])
    run = _only_run(folder / "workspace")
    _command(say, [*workspace, "audit", run])
    _command(say, [*workspace, "release", run, "--to", str(folder / "released")])
    _command(say, [*workspace, "verify", str(folder / "released")])
    _command(say, [*workspace, "ledger", "show"])
    say("")
    say("now a second run that asks for more than is left:")
    _refused(say, [*workspace, "plan", str(folder / "second.yaml")], code=11)
    say("")
    say(f"done in {time.monotonic() - started:.0f} s")
    say(f"the report:      {folder / 'released' / 'report.html'}  (open it in any browser)")
    say(f"the adapter:     {folder / 'released'}  (loads with plain PeftModel.from_pretrained)")
    say(f"the budget:      privft --workspace {folder / 'workspace'} ledger show")
    say("next: put your own notes through the same commands; README.md, 'Five minutes'")


def _command(say: Callable[[str], None], arguments: list[str]) -> None:
    from privft.cli import main

    say("")
    say(f"$ privft {shlex.join(arguments)}")
    main.main(arguments, prog_name="privft", standalone_mode=False)


def _refused(say: Callable[[str], None], arguments: list[str], *, code: int) -> None:
    """Run a command that must fail with `code`; anything else is an error of the demo."""
    from privft.cli import tell_error

    try:
        _command(say, arguments)
    except PrivftError as error:
        if error.exit_code != code:
            raise
        tell_error(error)
        say(f"(exit code {code})")
        return
    raise PrivftError(f"expected a refusal with exit code {code}, and the command went through")


def _only_run(folder: Path) -> str:
    from privft.workspace import Workspace

    with Workspace.open(folder).ledger() as ledger:
        (record,) = ledger.runs()
    return record.run
