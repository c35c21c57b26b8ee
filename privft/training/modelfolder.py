"""A model's folder on this machine: what it may hold, and what it hashes to.

Refused, because each could run code, reach for the network or train on something unforeseen:
pickled weights, `auto_map` and other marks of code that comes with a model, adapters instead of
models, quantised safetensors, weight files outside the folder, and folders without a tokenizer.
Nothing here loads a weight; `basemodel` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from privft.errors import InputError
from privft.signing import canonical_json

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_CODE_MARKS = ("auto_map", "trust_remote_code", "custom_pipelines")


def file_in(folder: Path, name: str) -> Path:
    """A file that has to be there; raises `InputError`."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"there is no file {name} in the model's folder")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(paths: Iterable[Path]) -> str:
    files = {path.name: sha256_of(path) for path in paths}
    return hashlib.sha256(canonical_json(files)).hexdigest()


def weights_digest(folder: Path) -> str:
    """SHA-256 in hex over the canonical JSON of {file name: sha256} of config and weights."""
    names = ("config.json", "model.safetensors.index.json")
    extra = [folder / name for name in names if (folder / name).is_file()]
    return _digest_of([*extra, *sorted(folder.glob("*.safetensors"))])


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in a model's folder."""
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def tokenizer_digest(folder: Path) -> str:
    """As `weights_digest`, over the tokenizer's files."""
    return _digest_of(tokenizer_files(folder))


def check_folder(folder: Path) -> None:
    """Refuse a model folder that privft must not load; see the module's docstring."""
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if pickled:
        raise InputError(
            f"the model's folder holds pickled files ({', '.join(pickled[:3])}), and loading "
            "such a file can run code",
            hint="use safetensors, and take these files out of the folder",
        )
    if (folder / "adapter_config.json").exists():
        raise InputError(
            "the folder holds an adapter and not a model",
            hint="merge the adapter into its base model first, and name the result",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        gguf = sorted(path.name for path in folder.glob("*.gguf"))
        raise InputError(
            "the model's folder holds no safetensors",
            hint=f"model.gguf_file: {gguf[0]}" if gguf else "only safetensors and GGUF are loaded",
        )
    _check_index(folder)
    config = json_in(file_in(folder, "config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            "the model's folder holds no tokenizer.json",
            hint="save the tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained()",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            _refuse_code(json_in(folder / name), name)
    if "quantization_config" in config:
        raise InputError(
            "the model's safetensors are quantised", hint="use unquantised or GGUF weights"
        )


def json_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; raises `InputError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"the model's {path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise InputError(f"the model's {path.name} is not a JSON object")
    return value


def _refuse_code(value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _CODE_MARKS and inner:
                raise InputError(
                    f"the model's {name} asks for code of its own ({key}), which privft never runs",
                    hint="use an architecture that transformers itself has",
                )
            _refuse_code(inner, name)
    elif isinstance(value, list):
        for inner in value:
            _refuse_code(inner, name)


def _check_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    shards = json_in(path).get("weight_map")
    if not isinstance(shards, dict):
        raise InputError(f"the model's {path.name} has no weight_map")
    for shard in set(map(str, shards.values())):
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InputError(f"the model's {path.name} names a file outside the folder")
        file_in(folder, shard)
