"""Hugging Face checkpoints both ways: `config.json` and safetensors as our parameters, and back.

Both directions go tensor by tensor: beyond the parameters themselves they hold one stacked leaf at most.
"""

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from core.errors import UserError
from core.files import write_json
from core.progress import track
from model import transformer
from model.config import ModelConfig
from model.hf_config import key_of_modules, read_json_object, to_hf
from model.safetensors_file import Place, read_header, read_rows, read_tensor, write
from model.transformer import Params

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
MAX_INDEX_BYTES = 64 << 20  # 100 bytes a tensor
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WITHOUT_EFFECT = ("rotary_emb.inv_freq",)  # a table that old Llama files hold and everybody computes


class Tensor(NamedTuple):
    """One of our arrays, or a layer of it, and its counterpart."""

    path: tuple[str, ...]  # in the parameters
    layer: int | None
    name: str  # over there
    # Leading axes of ours that are the inputs of a linear layer, there [out, in]; 0: a vector there; None: alike.
    inputs: int | None
    swapped: bool = False  # whether the halves of its inputs stand the other way round there

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """Our array as it is stored there."""
        if self.inputs is None:
            return ours
        ours = np.roll(ours, len(ours) // 2, 0) if self.swapped else ours
        return ours.reshape(math.prod(ours.shape[: self.inputs]), -1).T if self.inputs else ours.reshape(-1)

    def ours(self, theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Theirs as our array of shape `shape`."""
        theirs = np.roll(theirs, theirs.shape[1] // 2, 1) if self.swapped else theirs
        return theirs.T.reshape(shape) if self.inputs else theirs.reshape(shape)

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape there of our array of shape `shape`."""
        if self.inputs is None:
            return shape
        inner, outer = math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])
        return (outer, inner) if self.inputs else (outer,)


_LINEAR = {
    ("attention", "query"): ("self_attn.q_proj", 1),  # [D, N, H] <-> [N H, D]
    ("attention", "key"): ("self_attn.k_proj", 1),
    ("attention", "value"): ("self_attn.v_proj", 1),
    ("attention", "output"): ("self_attn.o_proj", 2),  # [N, H, D] <-> [D, N H]
    ("feed_forward", "gate"): ("mlp.gate_proj", 1),
    ("feed_forward", "up"): ("mlp.up_proj", 1),
    ("feed_forward", "down"): ("mlp.down_proj", 1),
}
_QK_NORMS = {("attention", "query_norm"): "self_attn.q_norm", ("attention", "key_norm"): "self_attn.k_norm"}
_NORMS = {
    "pre": {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"},
    "pre_post": {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    },
}
_MODULE_NORMS = {
    "sequential": {"final_norm": "shared_head.norm", "hidden_norm": "hnorm", "embedding_norm": "enorm"},
    "parallel": {"final_norm": "norm"},
}


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every array of the parameters with its name there, layer by layer."""
    yield Tensor(("embedding",), None, EMBEDDING, None)
    for i in range(config.num_layers):
        yield from _block(config, ("layers",), i, f"model.layers.{i}")
    yield Tensor(("final_norm", "scale"), None, "model.norm.weight", 0)
    if not config.tied_head:
        yield Tensor(("head",), None, HEAD, None)
    yield from _modules(config)


def _block(config: ModelConfig, stack: tuple[str, ...], i: int, at: str) -> Iterator[Tensor]:
    """Those of the i-th block of a stack."""
    norms = {(ours, "scale"): theirs for ours, theirs in _NORMS[config.norm_position].items()}
    norms |= {(*ours, "scale"): theirs for ours, theirs in _QK_NORMS.items() if config.qk_norm}
    biased = [("attention", name) for name in ("query", "key", "value") if config.qkv_bias]
    biased += [("attention", "output")] * config.output_bias
    biased += [("feed_forward", name) for name in ("gate", "up", "down") if config.feed_forward_bias]
    for ours, (theirs, inputs) in _LINEAR.items():
        yield Tensor((*stack, *ours), i, f"{at}.{theirs}.weight", inputs)
    for room, name in biased:
        yield Tensor((*stack, room, f"{name}_bias"), i, f"{at}.{_LINEAR[room, name][0]}.bias", 0)
    for ours, theirs in norms.items():
        yield Tensor((*stack, *ours), i, f"{at}.{theirs}.weight", 0)


def _modules(config: ModelConfig) -> Iterator[Tensor]:
    """Those of `multi_token`, which transformers passes over."""
    stack = ("multi_token", "layers")
    for i, at in enumerate(_places_of_modules(config)):
        yield from _block(config, stack, i, at)
        for ours, theirs in _MODULE_NORMS[config.multi_token.kind].items():
            yield Tensor((*stack, ours, "scale"), i, f"{at}.{theirs}.weight", 0)
        if config.multi_token.kind == "sequential":  # reads [embedding; stream] there
            yield Tensor((*stack, "projection"), i, f"{at}.eh_proj.weight", 1, swapped=True)


def _places_of_modules(config: ModelConfig) -> list[str]:
    """What their names begin with: layers behind the last as in DeepSeek-V3, or as Gloeckle et al. call them."""
    L, M = config.num_layers, config.multi_token.modules
    sequential = config.multi_token.kind == "sequential"
    return [f"model.layers.{L + i}" if sequential else f"extra_heads.{i}" for i in range(M)]


def _copies(config: ModelConfig) -> dict[str, str]:
    """Names under which DeepSeek-V3's modules hold the tables that they share, and the names of those."""
    if config.multi_token.kind != "sequential":
        return {}
    tables = {"embed_tokens": EMBEDDING, "shared_head.head": EMBEDDING if config.tied_head else HEAD}
    return {f"{at}.{name}.weight": of for at in _places_of_modules(config) for name, of in tables.items()}


def read_params(folder: Path, config: ModelConfig, place: Callable[[np.ndarray], Any] = jax.device_put) -> Params:
    """The parameters of a folder in float32, each stacked leaf handed to `place` as soon as it is whole.

    Every tensor must be there, of the shape that `config` gives it, and no other.
    """
    places = _find(folder)
    leaves: dict[tuple[str, ...], list[Tensor]] = {}
    for tensor in tensors(config):
        leaves.setdefault(tensor.path, []).append(tensor)
    _check(folder, config, places)
    params, abstract = {}, transformer.abstract(config)
    for path, parts in track(leaves.items(), "import", len(leaves)):
        group = params
        for name in path[:-1]:
            group = group.setdefault(name, {})
        group[path[-1]] = place(_read_leaf(places, parts, _leaf(abstract, path).shape))
    return params


def _read_leaf(places: dict[str, Place], parts: list[Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """One of our arrays, of one tensor or of a tensor a layer, in float32."""
    if parts[0].layer is None:
        found = read_tensor(places[parts[0].name])
        return np.ascontiguousarray(parts[0].ours(found, shape), np.float32)  # not a second copy where it is float32
    leaf = np.empty(shape, np.float32)
    for tensor in parts:
        leaf[tensor.layer] = tensor.ours(read_tensor(places[tensor.name]), shape[1:])
    return leaf


def _leaf(params: Params, path: tuple[str, ...]) -> Any:
    for name in path:
        params = params[name]
    return params


def _find(folder: Path) -> dict[str, Place]:
    """Where every tensor of a folder lies."""
    has_index, has_single = (folder / INDEX).is_file(), (folder / SINGLE).is_file()
    if has_index and has_single:
        raise UserError(f"{folder} holds both {SINGLE} and {INDEX}; remove the one that is out of date")
    if has_index:
        return _find_by_index(folder)
    if has_single:
        return read_header(folder / SINGLE)
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{folder} has its weights as {pickled[0]}, a pickle, which can run code when it is read; "
            "convert them to safetensors where they come from"
        )
    raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}")


def _find_by_index(folder: Path) -> dict[str, Place]:
    """The same for several files, which must hold what the index says and nothing else."""
    index = read_json_object(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise UserError(f"{folder / INDEX}: weight_map is missing or damaged")
    places: dict[str, Place] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{folder / INDEX} names {name!r}, which is not a file of this folder")
        for tensor, place in read_header(folder / name).items():
            if index.get(tensor) != name:
                raise UserError(f"{folder / name} holds tensor {tensor}, which {INDEX} does not say")
            places[tensor] = place
    for tensor, name in index.items():
        if tensor not in places:
            raise UserError(f"{folder / name} lacks tensor {tensor}, which {INDEX} says it holds")
    return places


def require_tensors(folder: Path, config: ModelConfig) -> None:
    """Refuses a folder whose tensors, by their headers, are not those of `config`."""
    _check(folder, config, _find(folder))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, and their index where there is one."""
    files = sorted({place.path for place in _find(folder).values()})
    return files + [folder / INDEX] * (folder / INDEX).is_file()


def _check(folder: Path, config: ModelConfig, places: dict[str, Place]) -> None:
    """Refuses missing and extra tensors and other shapes than the config's."""
    abstract, expected = transformer.abstract(config), {}
    for tensor in tensors(config):
        shape = _leaf(abstract, tensor.path).shape
        expected[tensor.name] = tensor.their_shape(shape if tensor.layer is None else shape[1:])
    missing = [name for name in expected if name not in places]
    if missing:
        hint = ""
        if missing[0] in [tensor.name for tensor in _modules(config)]:  # as transformers saves what it has loaded
            hint = f"; if it lost its modules, remove {key_of_modules(config)} from config.json"
        raise UserError(f"{folder} lacks tensor {missing[0]}" + _more(missing) + hint)
    for name, shape in expected.items():
        if places[name].shape != shape:
            found, where = list(places[name].shape), places[name].path
            raise UserError(f"{where}: tensor {name} has shape {found}, config.json says {list(shape)}")
    # Tables that are shared are sometimes stored once more all the same.
    copies = _copies(config) | ({HEAD: EMBEDDING} if config.tied_head else {})
    extra = [
        name
        for name, place in places.items()
        if name not in expected
        and not name.endswith(WITHOUT_EFFECT)
        and not (name in copies and _equal(place, places[copies[name]]))
    ]
    if extra:
        raise UserError(f"{folder} holds tensor {extra[0]}, which a model of its config.json has not" + _more(extra))


def _equal(one: Place, other: Place) -> bool:
    """Whether two tensors of two axes hold the same numbers, read a block of rows at a time."""
    if one.shape != other.shape:
        return False
    blocks = zip(read_rows(one), read_rows(other))
    return all(np.array_equal(*pair) for pair in blocks)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def write_model(
    folder: Path,
    config: ModelConfig,
    params: Params,
    *,
    max_positions: int,
    bos: int | None,
    eos: int | None,
    stop_ids: Collection[int] = (),
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a folder that `AutoModelForCausalLM.from_pretrained` loads: config, weights, generation defaults.

    UserError where no family there computes such a model.
    """
    described = to_hf(config, max_positions=max_positions, bos=bos, eos=eos, dtype=dtype)
    write_json(folder / "config.json", described)
    ends = sorted(set(stop_ids) | ({eos} if eos is not None else set()))  # a chat ends its turns with another
    generation = {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else eos, "pad_token_id": eos}
    generation |= {"do_sample": True, "top_k": 50}
    write_json(folder / "generation_config.json", generation)
    write_weights(folder, config, params, dtype)


def write_weights(folder: Path, config: ModelConfig, params: Params, dtype: str = "float32") -> None:
    """`model.safetensors`, or files of up to 5 GB and their index."""
    named = {tensor.name: tensor for tensor in tensors(config)}
    named |= {name: named[of] for name, of in _copies(config).items()}
    own = {name: _leaf(params, t.path).shape[0 if t.layer is None else 1 :] for name, t in named.items()}
    shapes = {name: tensor.their_shape(own[name]) for name, tensor in named.items()}

    def make(name: str) -> np.ndarray:
        tensor = named[name]
        leaf = _leaf(params, tensor.path)
        return tensor.theirs(np.asarray(leaf if tensor.layer is None else leaf[tensor.layer]))

    width, kind = {"float32": (4, "F32"), "bfloat16": (2, "BF16")}[dtype]
    shards, room = [{}], SHARD_BYTES
    for name, shape in shapes.items():
        size = math.prod(shape) * width
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= size
    if len(shards) == 1:
        write(folder / SINGLE, shapes, kind, make)
        return
    weight_map = {}
    for number, shard in enumerate(track(shards, "export", len(shards)), 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shard, kind, make)
        weight_map.update(dict.fromkeys(shard, name))
    total = sum(map(math.prod, shapes.values())) * width
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
