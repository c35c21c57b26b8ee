"""What a run config promises: strictness, clear refusals, a stable digest, nothing inferred."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from privft.budget.mechanism import auto_delta
from privft.config import RunConfig, json_schema, load_config, parse_config
from privft.errors import ConfigError
from privft.signing import canonical_json

TEXT = """\
task: causal-lm
dataset: notes-2026
model: {name_or_path: "builtin:smollm2-135m-instruct", dtype: bfloat16}
max_length: 64
lora:
  r: 4
  lora_alpha: 8
  layers_to_transform: [20, 21]
privacy:
  unit: subject
  declared_units: 3000
  target_epsilon: 3
  expected_batch_size: 96
  max_steps: 20
  max_records_per_unit: 4
training: {learning_rate: 5e-3}
"""

CLASSIFICATION = """\
task: sequence-classification
dataset: intents
model: {name_or_path: "builtin:all-minilm-l6-v2", pooling: mean}
labels: [yes, no]
max_length: 64
lora: null
privacy: {unit: record, declared_units: 9000, noise_multiplier: 1.1, expected_batch_size: 256,
          max_steps: 100, delta: 1e-5}
"""


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="run.yaml")
    return caught.value


def test_a_config_is_read_with_its_defaults() -> None:
    config = parse_config(TEXT)
    assert config.training.learning_rate == 0.005
    assert config.privacy.target_epsilon == 3.0
    assert config.privacy.sampling_probability == 96 / 3000
    assert config.lora is not None
    assert config.lora.layers_to_transform == (20, 21)
    assert config.model.builtin == "smollm2-135m-instruct"
    assert config.performance.device == "auto"


def test_what_is_silent_gets_the_defaults_of_its_task() -> None:
    silent = parse_config(TEXT.replace("training: {learning_rate: 5e-3}\n", ""))
    assert (silent.privacy.max_grad_norm, silent.training.learning_rate) == (0.3, 5e-3)
    assert silent.training.head_learning_rate is None
    classifier = parse_config(CLASSIFICATION)
    assert (classifier.privacy.max_grad_norm, classifier.training.learning_rate) == (1.0, 1e-3)
    assert classifier.training.head_learning_rate == 0.02
    given = parse_config(CLASSIFICATION + "training: {head_learning_rate: null}\n")
    assert given.training.head_learning_rate is None
    assert parse_config(json.dumps(silent.to_dict())) == silent


def test_options_of_peft_and_transformers_keep_their_names() -> None:
    lora = "  r: 4\n  lora_dropout: 0.05\n  modules_to_save: [lm_head]"
    training = "training: {gradient_checkpointing: true, "
    config = parse_config(TEXT.replace("  r: 4", lora).replace("training: {", training))
    assert config.lora is not None
    assert config.lora.lora_dropout == 0.05
    assert config.lora.modules_to_save == ("lm_head",)
    assert config.training.gradient_checkpointing
    plain = parse_config(TEXT)
    assert plain.lora is not None
    assert (plain.lora.lora_dropout, plain.lora.modules_to_save) == (0.0, None)
    assert not plain.training.gradient_checkpointing


def test_labels_that_look_like_truth_values_stay_words() -> None:
    assert parse_config(CLASSIFICATION).labels == ("yes", "no")


def test_the_config_cannot_be_changed_after_it_was_read() -> None:
    config = parse_config(TEXT)
    with pytest.raises(ValueError, match="frozen"):
        config.privacy.max_steps = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("learning_rate", "learning_rat", "line 16: unknown key 'learning_rat'", "'learning_rate'"),
        ("  r: 4", "  lora_alfa: 4", "line 6: unknown key 'lora_alfa' in lora", "'lora_alpha'"),
        ("task:", "tsak:", "line 1: unknown key 'tsak'", "'task'"),
        ("  r: 4", "  max_steps: 4", "line 6: unknown key", "belongs under privacy:"),
        ("max_length", "r: 4\nmax_length", "line 4: unknown key 'r'", "belongs under lora:"),
        ("  r: 4", "  max_length: 4", "line 6: unknown key", "belongs at the top level"),
        ("max_length", "num_train_epochs: 3\nmax_length", "line 4: unknown", "not epochs"),
        ("dtype: bfloat16", "trust_remote_code: true", "line 3: unknown", "never run"),
        ("  r: 4", "  ensure_weight_tying: true", "line 6: unknown", "stands on its own"),
    ],
)
def test_an_unknown_key_is_refused_and_the_right_one_named(
    old: str, new: str, message: str, hint: str
) -> None:
    error = refusal(TEXT.replace(old, new, 1))
    assert message in error.message
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("declared_units: 3000", "declared_units: 3000.0", "must be a valid integer"),
        ("declared_units: 3000", 'declared_units: "3000"', "must be a valid integer"),
        ("target_epsilon: 3", "target_epsilon: .inf", "must be a valid number"),
        ("target_epsilon: 3", "target_epsilon: -1", "must be greater than 0, got -1"),
        ("target_epsilon: 3", "target_epsilon: 3\n  noise_multiplier: 1", "exactly one"),
        ("  target_epsilon: 3\n", "", "exactly one of target_epsilon"),
        ("target_epsilon: 3", "target_epsilon: 3\n  delta: 0.001", "below 1/declared_units"),
        ("expected_batch_size: 96", "expected_batch_size: 4000", "at most declared_units 3000"),
        ("  max_records_per_unit: 4\n", "", "expected max_records_per_unit"),
        ("unit: subject", "unit: record", "expected no max_records_per_unit"),
        ("max_length: 64", "max_length: 64\nlabels: [a, b]", "expected no labels"),
        ("{learning_rate: 5e-3}", "{head_learning_rate: 0.03}", "there is no head"),
        ("builtin:smollm2-135m-instruct", "builtin:gpt", "expected one of builtin:smollm2"),
        ("task: causal-lm", "task: seq2seq", "'causal-lm' or 'sequence-classification'"),
        ("[20, 21]", "[]", "layers_to_transform"),
        ("  r: 4", "  lora_dropout: 1", "lora_dropout must be less than 1"),
        ("  r: 4", "  modules_to_save: []", "modules_to_save"),
        ("  r: 4", "  target_modules: 5", "must be 'all-linear' or be a valid"),
        ("max_length: 64\n", "", "expected the key 'max_length'"),
        ("max_length: 64", "max_length: 64\nmax_length: 65", "second 'max_length'"),
        ("dataset: notes", "dataset: &anchor notes", "anchor or alias"),
        ("dataset: notes-2026", "dataset: !!python/object:os.system x", "tag"),
        ("dataset: notes-2026", "dataset: ../other", "dataset must match pattern"),
        ("lora:", "lora: {", "run.yaml line"),
        ("lora:", "? [a]\n: 1\nlora:", "key that is not text"),
        ("{learning_rate: 5e-3}", "{momentum: 0.9}", "optim is adamw_torch: adam_beta1 is its"),
        ("{learning_rate: 5e-3}", "{optim: sgd, momentum: 1}", "momentum must be less than 1"),
        ("{learning_rate: 5e-3}", "{optim: sgd, adam_noise_correction: true}", "optim is sgd"),
        ("{learning_rate: 5e-3}", "{adam_noise_floor: 0}", "adam_noise_floor must be greater"),
        ("  unit: subject", "  adaptive: {}\n  unit: subject", "expected clipping: adaptive"),
        (
            "  unit: subject",
            "  clipping: adaptive\n  adaptive: {target_quantile: 1}\n  unit: subject",
            "target_quantile must be less than 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    error = refusal(TEXT.replace(old, new, 1))
    assert message in error.message
    assert error.message.startswith("run.yaml line ")
    assert error.exit_code == 2


def test_classification_needs_its_labels_from_the_config() -> None:
    error = refusal(CLASSIFICATION.replace("labels: [yes, no]\n", ""))
    assert "never from the records" in error.message
    assert "each label once" in refusal(CLASSIFICATION.replace("[yes, no]", "[no, no]")).message


def test_a_classifier_is_asked_nothing() -> None:
    assert "expected no instruction" in refusal(CLASSIFICATION + "instruction: Sum up.\n").message
    assert parse_config(TEXT + "instruction: Sum up.\n").instruction == "Sum up."


def test_a_head_may_have_a_learning_rate_of_its_own() -> None:
    own = CLASSIFICATION + "training: {learning_rate: 1e-3, head_learning_rate: 0.03}\n"
    training = parse_config(own).training
    assert (training.learning_rate, training.head_learning_rate) == (1e-3, 0.03)
    assert "greater than 0" in refusal(own.replace("0.03", "0")).message


def test_a_causal_model_without_an_adapter_has_nothing_to_train() -> None:
    lora = TEXT[TEXT.index("lora:") : TEXT.index("privacy:")]
    assert "there is no head" in refusal(TEXT.replace(lora, "lora: null\n")).message


@pytest.mark.parametrize("text", ["", "- a\n- b", "plain", "a: 1\n---\nb: 2", "\x00", "[" * 5000])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    assert "run.yaml" in refusal(text).message


def test_an_absent_or_binary_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"task: \xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 6"):
        load_config(tmp_path / "binary.yaml")


def test_a_file_of_a_mebibyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_text(TEXT + "#" * (1 << 20))
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        load_config(tmp_path / "big.yaml")


def test_the_digest_is_of_the_values_and_not_of_the_spelling() -> None:
    config = parse_config(TEXT)
    assert parse_config(canonical_json(config.to_dict()).decode()).digest == config.digest
    assert parse_config("# a comment\n" + TEXT).digest == config.digest
    assert parse_config(TEXT.replace("5e-3", "0.005")).digest == config.digest
    assert parse_config(TEXT.replace("5e-3", "0.006")).digest != config.digest


def test_auto_delta_is_one_significant_digit_below_the_exact_value() -> None:
    # 3000**-1.1 = 1.4968e-4; 1000**-1.1 = 5.0119e-4; 10**-11 exactly for 10**10 units
    assert [auto_delta(n) for n in (3000, 1000, 10**10)] == [1e-4, 5e-4, 1e-11]


@given(st.integers(2, 10**12))
def test_auto_delta_stays_below_one_over_the_number_of_units(units: int) -> None:
    delta = auto_delta(units)
    assert 0 < delta <= units**-1.1 * (1 + 1e-9)
    assert delta * units < 1
    assert delta > units**-1.1 / 2.0001


@pytest.mark.parametrize("text", [TEXT, CLASSIFICATION])
def test_the_schema_takes_what_the_reader_takes(text: str) -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    value = yaml.safe_load(text.replace("5e-3", "0.005").replace("[yes, no]", "[a, b]"))
    if text == CLASSIFICATION:
        value["privacy"]["delta"] = 1e-5
    jsonschema.validate(value, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**value, "surprise": 1}, schema)


def test_the_schema_explains_the_keys_that_need_it() -> None:
    privacy: dict[str, Any] = json_schema()["$defs"]["PrivacyConfig"]["properties"]
    assert "public number" in privacy["declared_units"]["description"]


@settings(max_examples=150)
@given(st.text(alphabet="abr:-[]{}&*!|>?'\"# \n\t0e.~%@`", max_size=60) | st.text(max_size=30))
def test_any_text_ends_in_a_config_or_a_config_error(text: str) -> None:
    try:
        config = parse_config(text)
    except ConfigError:
        return
    assert isinstance(config, RunConfig)
