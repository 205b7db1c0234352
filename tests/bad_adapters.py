"""Adapter folders that must be refused, each with its reason, and unusual ones that must not.

Built for whatever base they are given, so that the unit tests use a tiny one and the end-to-end tests the
real one. `BAD[name].build(folder, base)` writes the folder; `BAD[name].reason` is what refuses it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from adapters.base import EMBEDDINGS, BaseModel, weight_files

Array = npt.NDArray[Any]

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RANK = 4

_TYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8"}


@dataclass
class Draft:
    """An adapter in the making: a sound one, until a case spoils it."""

    base: BaseModel
    config: dict[str, Any]
    tensors: dict[str, Array]
    files: dict[str, bytes] = field(default_factory=dict)
    has_config: bool = True
    has_weights: bool = True

    def name(self, module: str, half: str) -> str:
        return f"{PREFIX}{module}.lora_{half}.weight"

    @property
    def modules(self) -> list[str]:
        return sorted({_module(name) for name in self.tensors if ".lora_A." in name})

    def reshape(self, change: Callable[[int, int, int], tuple[int, int, int]]) -> None:
        """Give every pair the (rank, inputs, outputs) that `change` makes of its own."""
        for module in self.modules:
            a, b = self.name(module, "A"), self.name(module, "B")
            rank, inputs, outputs = change(
                self.tensors[a].shape[0], self.tensors[a].shape[1], len(self.tensors[b])
            )
            self.tensors[a], self.tensors[b] = _noise(rank, inputs), _noise(outputs, rank)

    def add(self, module: str, inputs: int, outputs: int) -> None:
        self.tensors[self.name(module, "A")] = _noise(RANK, inputs)
        self.tensors[self.name(module, "B")] = _noise(outputs, RANK)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        if self.has_config:
            (folder / CONFIG).write_text(json.dumps(self.config))
        if self.has_weights:
            (folder / WEIGHTS).write_bytes(serialise(self.tensors))
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder


def _module(name: str) -> str:
    return name.removeprefix(PREFIX).partition(".lora_")[0]


def _noise(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(scale=0.02, size=shape).astype(np.float32)


def serialise(tensors: dict[str, Array]) -> bytes:
    """A safetensors file; uint16 arrays are written as bfloat16, which numpy does not have."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in tensors.items():
        end = position + array.nbytes
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + b"".join(array.tobytes() for array in tensors.values())


def good(base: BaseModel, seed: int = 0) -> Draft:
    """A sound LoRA of rank 4 on the attention's q and v and the MLP's down projections."""
    numbers = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for module, (outputs, inputs) in base.modules.items():
        if module.rpartition(".")[2] in ("q_proj", "v_proj", "down_proj"):
            a, b = numbers.normal(size=(RANK, inputs)), numbers.normal(size=(outputs, RANK))
            tensors[f"{PREFIX}{module}.lora_A.weight"] = (a * 0.02).astype(np.float32)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = (b * 0.02).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/else",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "modules_to_save": None,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    return Draft(base, config, tensors)


def embedding(base: BaseModel) -> tuple[str, int, int]:
    """The base's embedding module: its path, vocabulary and width."""
    path = next(path for path in base.modules if path.rpartition(".")[2] in EMBEDDINGS)
    return path, *base.modules[path]


def embedding_weights(base: BaseModel) -> Array:
    path = f"{embedding(base)[0]}.weight"
    for file in weight_files(base.folder):
        tensors = load_file(file)
        if path in tensors:
            return np.asarray(tensors[path])
    raise LookupError(path)


Spoil = Callable[[Draft], None]


@dataclass(frozen=True)
class Case:
    """One folder to be refused; `reason` is the code."""

    spoil: Spoil
    reason: str

    def build(self, folder: Path, base: BaseModel) -> Path:
        draft = good(base)
        self.spoil(draft)
        return draft.write(folder)


BAD: dict[str, Case] = {}
GOOD: dict[str, Spoil] = {}


def bad(reason: str) -> Callable[[Spoil], Spoil]:
    def keep(spoil: Spoil) -> Spoil:
        BAD[spoil.__name__] = Case(spoil, reason)
        return spoil

    return keep


def unusual(spoil: Spoil) -> Spoil:
    GOOD[spoil.__name__] = spoil
    return spoil


def setting(name: str, reason: str, **fields: Any) -> None:
    """A case that only changes adapter_config.json."""
    BAD[name] = Case(lambda draft: draft.config.update(fields), reason)


class _Evil:
    """Unpickling it would leave a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import pathlib; pathlib.Path('PWNED').touch()",)


# Files ----------------------------------------------------------------------------------------------------


@bad("empty_folder")
def empty_folder(draft: Draft) -> None:
    draft.has_config = draft.has_weights = False


@bad("missing_config")
def no_config(draft: Draft) -> None:
    draft.has_config = False


@bad("bad_config")
def broken_config(draft: Draft) -> None:
    draft.has_config = False
    draft.files[CONFIG] = b"{nope"


@bad("bad_config")
def config_is_a_list(draft: Draft) -> None:
    draft.has_config = False
    draft.files[CONFIG] = b"[1, 2]"


@bad("missing_weights")
def no_weights(draft: Draft) -> None:
    draft.has_weights = False


@bad("full_model")
def whole_model(draft: Draft) -> None:
    draft.has_config = False
    draft.files["config.json"] = b"{}"


@bad("empty_weights")
def zero_bytes(draft: Draft) -> None:
    draft.has_weights = False
    draft.files[WEIGHTS] = b""


@bad("truncated_weights")
def truncated(draft: Draft) -> None:
    draft.has_weights = False
    raw = serialise(draft.tensors)
    draft.files[WEIGHTS] = raw[: len(raw) - len(raw) // 3]


@bad("truncated_weights")
def truncated_header(draft: Draft) -> None:
    draft.has_weights = False
    draft.files[WEIGHTS] = serialise(draft.tensors)[:100]


@bad("bad_weights")
def garbage(draft: Draft) -> None:
    draft.has_weights = False
    draft.files[WEIGHTS] = np.random.default_rng(1).bytes(4096)


@bad("bad_weights")
def bytes_after_the_end(draft: Draft) -> None:
    draft.has_weights = False
    draft.files[WEIGHTS] = serialise(draft.tensors) + b"more"


@bad("no_tensors")
def empty_tensor_set(draft: Draft) -> None:
    draft.tensors.clear()


@bad("pickled_weights")
def bin_only(draft: Draft) -> None:
    draft.has_weights = False
    draft.files["adapter_model.bin"] = pickle.dumps({"weights": [1.0]})


@bad("pickled_weights")
def evil_bin_only(draft: Draft) -> None:
    draft.has_weights = False
    draft.files["adapter_model.bin"] = pickle.dumps(_Evil())


@bad("unexpected_file")
def bin_beside_the_weights(draft: Draft) -> None:
    draft.files["adapter_model.bin"] = pickle.dumps(_Evil())


@bad("unexpected_file")
def optimizer_state(draft: Draft) -> None:
    draft.files["optimizer.pt"] = b"PK"


@bad("unexpected_file")
def python_code(draft: Draft) -> None:
    draft.files["modeling_custom.py"] = b"import os"


@bad("unexpected_file")
def pickle_file(draft: Draft) -> None:
    draft.files["extra.pkl"] = pickle.dumps(1)


@bad("unexpected_folder")
def whole_run(draft: Draft) -> None:
    draft.files["checkpoint-500/trainer_state.json"] = b"{}"


@bad("too_many_files")
def too_many_files(draft: Draft) -> None:
    draft.files.update({f"note-{number}.txt": b"" for number in range(250)})


# Settings -------------------------------------------------------------------------------------------------

setting("dora", "dora", use_dora=True)
setting("bias", "bias", bias="lora_only")
setting("lora_bias", "bias", lora_bias=True)
setting("modules_to_save", "modules_to_save", modules_to_save=["lm_head"])
setting("rank_zero", "bad_rank", r=0)
setting("rank_is_text", "bad_rank", r="8")
setting("rank_pattern_zero", "bad_rank", rank_pattern={"q_proj": 0})
setting("alpha_zero", "bad_alpha", lora_alpha=0)
setting("alpha_missing", "bad_alpha", lora_alpha=None)
setting("rank_over_the_engine", "rank_too_large", r=1024)
setting("loha", "loha_adapter", peft_type="LOHA")
setting("lokr", "lokr_adapter", peft_type="LOKR")
setting("vera", "vera_adapter", peft_type="VERA")
setting("ia3", "ia3_adapter", peft_type="IA3")
setting("adalora", "adalora_adapter", peft_type="ADALORA")
setting("oft", "oft_adapter", peft_type="OFT")
setting("prompt_tuning", "prompt_adapter", peft_type="PROMPT_TUNING")
setting("prefix_tuning", "prompt_adapter", peft_type="PREFIX_TUNING")
setting("fourier", "other_adapter_type", peft_type="FOURIERFT")
setting("no_peft_type", "bad_config", peft_type=None)
setting("pissa", "unconverted_init", init_lora_weights="pissa")
setting("pissa_niter", "unconverted_init", init_lora_weights="pissa_niter_16")
setting("olora", "unconverted_init", init_lora_weights="olora")
setting("corda", "unconverted_init", init_lora_weights="corda")
setting("loftq", "unconverted_init", init_lora_weights="loftq")
setting("unknown_init", "unknown_init", init_lora_weights="brand_new")
setting("alora", "alora", alora_invocation_tokens=[1, 2])
setting("layer_replication", "layer_replication", layer_replication=[[0, 2], [1, 3]])
setting("bdlora", "bdlora", use_bdlora={"nblocks": 2})
setting("qalora", "qalora", use_qalora=True)
setting("arrow", "arrow", arrow_config={"top_k": 2})
setting("kasa", "kasa", kasa_config={"beta": 1})
setting("monteclora", "monteclora", monteclora_config={"n": 2})
setting("trainable_tokens", "trainable_tokens", trainable_token_indices=[1, 2])
setting("target_parameters", "target_parameters", target_parameters=["mlp.experts.gate_up_proj"])
setting("unsafe_pattern", "unsafe_pattern", rank_pattern={"(a+)+b": 4})
setting("broken_pattern", "bad_config", alpha_pattern={"q_proj(": 4})
setting("no_targets", "bad_config", target_modules=None)
setting("rank_pattern_lies", "rank_mismatch", rank_pattern={"q_proj": 8})
setting("undeclared_module", "undeclared_module", target_modules=["q_proj", "down_proj"])


@bad("bad_lineage")
def broken_lineage(draft: Draft) -> None:
    draft.files["onebase.json"] = b"{"


@bad("bad_lineage")
def half_a_fingerprint(draft: Draft) -> None:
    draft.files["onebase.json"] = b'{"base_fingerprint": {"weights": "sha256:00"}}'


@bad("other_base_weights")
def other_weights(draft: Draft) -> None:
    fingerprint = draft.base.fingerprint.to_json() | {"weights": "sha256:" + "0" * 64}
    draft.files["onebase.json"] = json.dumps({"base": "b", "base_fingerprint": fingerprint}).encode()


@bad("other_tokenizer")
def other_tokenizer_recorded(draft: Draft) -> None:
    fingerprint = draft.base.fingerprint.to_json() | {"tokenizer": "sha256:" + "0" * 64}
    draft.files["onebase.json"] = json.dumps({"base": "b", "base_fingerprint": fingerprint}).encode()


@bad("other_tokenizer")
def one_more_token(draft: Draft) -> None:
    tokenizer = json.loads((draft.base.folder / "tokenizer.json").read_bytes())
    tokenizer["model"]["vocab"]["<pad>"] = len(tokenizer["model"]["vocab"])
    draft.files["tokenizer.json"] = json.dumps(tokenizer).encode()


@bad("bad_tokenizer")
def broken_tokenizer(draft: Draft) -> None:
    draft.files["tokenizer.json"] = b"{"


@bad("bad_chat_template")
def endless_chat_template(draft: Draft) -> None:
    draft.files["chat_template.jinja"] = b"x" * 300_000


# Tensors --------------------------------------------------------------------------------------------------


@bad("larger_base")
def larger_base(draft: Draft) -> None:
    draft.reshape(lambda rank, inputs, outputs: (rank, 2 * inputs, 2 * outputs))


@bad("smaller_base")
def smaller_base(draft: Draft) -> None:
    draft.reshape(lambda rank, inputs, outputs: (rank, inputs // 2, outputs // 2))


@bad("other_base")
def narrower_and_wider_base(draft: Draft) -> None:
    draft.reshape(lambda rank, inputs, outputs: (rank, 2 * inputs, outputs // 2))


@bad("wrong_shape")
def one_middle_layer(draft: Draft) -> None:
    module = draft.modules[len(draft.modules) // 2]
    name = draft.name(module, "A")
    draft.tensors[name] = _noise(RANK, 2 * draft.tensors[name].shape[1])


@bad("wrong_shape")
def ranks_of_a_pair_differ(draft: Draft) -> None:
    name = draft.name(draft.modules[0], "B")
    draft.tensors[name] = _noise(len(draft.tensors[name]), RANK + 1)


@bad("wrong_shape")
def three_dimensions(draft: Draft) -> None:
    name = draft.name(draft.modules[0], "A")
    draft.tensors[name] = draft.tensors[name][None]


@bad("rank_mismatch")
def rank_in_weights_is_higher(draft: Draft) -> None:
    draft.reshape(lambda rank, inputs, outputs: (4 * rank, inputs, outputs))


@bad("rank_mismatch")
def rank_in_weights_is_lower(draft: Draft) -> None:
    draft.reshape(lambda rank, inputs, outputs: (rank // 2, inputs, outputs))


@bad("dora_undeclared")
def dora_undeclared(draft: Draft) -> None:
    for module in draft.modules:
        draft.tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = np.ones(4, dtype=np.float32)


@bad("loha_adapter")
def loha_keys(draft: Draft) -> None:
    for module in draft.modules:
        for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
            draft.tensors[f"{PREFIX}{module}.{part}"] = _noise(4, 4)


@bad("ia3_adapter")
def ia3_keys(draft: Draft) -> None:
    draft.tensors = {f"{PREFIX}{module}.ia3_l": _noise(4, 1) for module in draft.modules}


@bad("changed_embeddings")
def full_head_undeclared(draft: Draft) -> None:
    _, vocabulary, width = embedding(draft.base)
    draft.tensors[f"{PREFIX}lm_head.weight"] = _noise(vocabulary, width)


@bad("resized_embeddings")
def more_tokens(draft: Draft) -> None:
    path, vocabulary, width = embedding(draft.base)
    draft.tensors[f"{PREFIX}{path}.base_layer.weight"] = _noise(vocabulary + 1, width)


@bad("full_weights")
def full_projection(draft: Draft) -> None:
    module = draft.modules[0]
    draft.tensors[f"{PREFIX}{module}.weight"] = _noise(*draft.base.modules[module])


@bad("modules_to_save")
def head_the_base_lacks(draft: Draft) -> None:
    draft.config["modules_to_save"] = ["score"]
    draft.tensors[f"{PREFIX}score.weight"] = _noise(2, embedding(draft.base)[2])


@bad("bias")
def bias_undeclared(draft: Draft) -> None:
    draft.tensors[f"{PREFIX}{draft.modules[0]}.lora_B.bias"] = _noise(4)


@bad("unknown_module")
def unknown_module(draft: Draft) -> None:
    draft.add(draft.modules[0].rpartition(".")[0] + ".foo_proj", 8, 8)


@bad("extra_layers")
def extra_layers(draft: Draft) -> None:
    module = next(module for module in draft.modules if ".layers.0." in module)
    outputs, inputs = draft.base.modules[module]
    draft.add(module.replace(".layers.0.", ".layers.99."), inputs, outputs)


@bad("no_matching_module")
def nothing_matches(draft: Draft) -> None:
    draft.tensors = {name.replace("model.layers", "transformer.h"): w for name, w in draft.tensors.items()}


@bad("missing_pair")
def only_a(draft: Draft) -> None:
    draft.tensors = {name: weights for name, weights in draft.tensors.items() if "lora_A" in name}


@bad("missing_pair")
def one_b_missing(draft: Draft) -> None:
    del draft.tensors[draft.name(draft.modules[1], "B")]


@bad("unknown_tensor")
def weird_tensor(draft: Draft) -> None:
    draft.tensors["foo.bar"] = _noise(2)


@bad("adapter_name_in_tensors")
def name_in_tensors(draft: Draft) -> None:
    draft.tensors = {name.replace(".weight", ".default.weight"): w for name, w in draft.tensors.items()}


@bad("tied_lora")
def tied_lora(draft: Draft) -> None:
    path, vocabulary, width = embedding(draft.base)
    draft.config["ensure_weight_tying"] = True
    draft.config["target_modules"].append(path.rpartition(".")[2])
    draft.tensors[f"{PREFIX}{path}.lora_embedding_A"] = _noise(RANK, vocabulary)
    draft.tensors[f"{PREFIX}{path}.lora_embedding_B"] = _noise(width, RANK)


@bad("wrong_dtype")
def int8(draft: Draft) -> None:
    draft.tensors = {name: (weights * 100).astype(np.int8) for name, weights in draft.tensors.items()}


@bad("non_finite")
def nan(draft: Draft) -> None:
    draft.tensors[draft.name(draft.modules[-1], "B")][-1, -1] = np.nan


@bad("non_finite")
def infinite_in_half(draft: Draft) -> None:
    draft.tensors = {name: weights.astype(np.float16) for name, weights in draft.tensors.items()}
    draft.tensors[draft.name(draft.modules[0], "A")][0, 0] = -np.inf


@bad("non_finite")
def nan_in_bfloat16(draft: Draft) -> None:
    draft.tensors = {name: to_bfloat16(weights) for name, weights in draft.tensors.items()}
    draft.tensors[draft.name(draft.modules[0], "B")][0, 0] = 0x7FC0


@bad("no_effect")
def zero_b(draft: Draft) -> None:
    for module in draft.modules:
        draft.tensors[draft.name(module, "B")][:] = 0


@bad("no_effect")
def minus_zero_b(draft: Draft) -> None:
    for module in draft.modules:
        draft.tensors[draft.name(module, "B")][:] = -0.0


def to_bfloat16(weights: Array) -> Array:
    return (weights.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


# Unusual, and fine ----------------------------------------------------------------------------------------


@unusual
def rslora(draft: Draft) -> None:
    draft.config["use_rslora"] = True


@unusual
def half_precision(draft: Draft) -> None:
    draft.tensors = {name: weights.astype(np.float16) for name, weights in draft.tensors.items()}


@unusual
def bfloat16(draft: Draft) -> None:
    draft.tensors = {name: to_bfloat16(weights) for name, weights in draft.tensors.items()}


@unusual
def gaussian_init(draft: Draft) -> None:
    draft.config["init_lora_weights"] = "gaussian"


@unusual
def regular_expression_targets(draft: Draft) -> None:
    draft.config["target_modules"] = r".*\.(q|v|down)_proj"


@unusual
def rank_and_alpha_patterns(draft: Draft) -> None:
    module = draft.modules[0]
    outputs, inputs = draft.base.modules[module]
    draft.config["rank_pattern"] = {module: 8}
    draft.config["alpha_pattern"] = {module: 32}
    draft.tensors[draft.name(module, "A")] = _noise(8, inputs)
    draft.tensors[draft.name(module, "B")] = _noise(outputs, 8)


@unusual
def without_prefix(draft: Draft) -> None:
    draft.tensors = {name.removeprefix(PREFIX): weights for name, weights in draft.tensors.items()}


@unusual
def lora_on_head(draft: Draft) -> None:
    _, vocabulary, width = embedding(draft.base)
    draft.config["target_modules"].append("lm_head")
    draft.add("lm_head", width, vocabulary)


@unusual
def lora_on_embeddings_with_a_copy(draft: Draft) -> None:
    path, vocabulary, width = embedding(draft.base)
    draft.config["target_modules"].append(path.rpartition(".")[2])
    draft.tensors[f"{PREFIX}{path}.lora_embedding_A"] = _noise(RANK, vocabulary)
    draft.tensors[f"{PREFIX}{path}.lora_embedding_B"] = _noise(width, RANK)
    draft.tensors[f"{PREFIX}{path}.base_layer.weight"] = embedding_weights(draft.base)


@unusual
def lora_tied_at_both_ends(draft: Draft) -> None:
    lora_on_embeddings_with_a_copy(draft)
    _, vocabulary, width = embedding(draft.base)
    draft.config["ensure_weight_tying"] = True
    draft.add("lm_head", width, vocabulary)


@unusual
def copy_of_the_head(draft: Draft) -> None:
    draft.tensors[f"{PREFIX}lm_head.weight"] = embedding_weights(draft.base)


@unusual
def some_b_are_zero(draft: Draft) -> None:
    draft.tensors[draft.name(draft.modules[0], "B")][:] = 0


@unusual
def idle_target(draft: Draft) -> None:
    draft.config["target_modules"].append("k_proj")


@unusual
def companions(draft: Draft) -> None:
    for name in ("README.md", ".gitattributes", "special_tokens_map.json", "training_args.json", "LICENSE"):
        draft.files[name] = b"{}"
    for name in ("tokenizer.json", "chat_template.jinja"):
        source = draft.base.folder / name
        if source.is_file():
            draft.files[name] = source.read_bytes()
