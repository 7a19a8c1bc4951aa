"""Files of weights: they are read without running anything of theirs, and fitted to an encoder.

The names of the tensors may be those of timm, of a run of ours, of torchvision or of Hugging Face's
transformers (ResNet, ConvNeXt, ViT, DeiT, DINOv2, Swin), or those of the original authors that timm
translates, below any prefix (`state_dict.module.backbone.`). A classifier is left out.
"""

import errno
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from json import JSONDecodeError
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from sureclr.errors import UserError
from sureclr.files import open_file, read_safetensors, why

PYTORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
ENDINGS = (".safetensors", *PYTORCH_ENDINGS)
LARGEST_FILE = 1 << 36  # bytes of a file of weights; the largest of timm's have about 2^34
MOST_TENSORS = 100_000
DEEPEST = 5  # dictionaries in each other
COUNTER = (
    "num_batches_tracked"  # of batch normalisation; some files lack it, and no result needs it
)
ROLES = ("weight", "bias", "running_mean", "running_var")  # as what a tensor of equal shape serves
BUFFERS = (COUNTER, "relative_position_index", "attn_mask")  # the shapes decide their values
HEADS = (  # what belongs to a classifier or to the pretraining, and not to the features
    *("fc.", "head.", "heads.", "head_dist.", "classifier.", "last_linear.", "pooler."),
    *("mask_token", "projection_head.", "projector.", "predictor."),
)
AVERAGED = ("teacher", "ema")  # the averaged copy of a network, which is the better one
NOT_LOADED = (  # what torch.load raises for other files than it writes
    *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, AttributeError, TypeError),
    *(AssertionError, UnicodeError, OverflowError),
)
SHOWN = 3  # names in an error message
State = dict[str, Tensor]
Renaming = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]  # patterns in their order


def _next(start: str, end: str, step: int = 1) -> Callable[[re.Match[str]], str]:
    """Return what replaces a match by text around its number plus a step."""
    return lambda match: f"{start}{int(match[1]) + step}{end}"


TRANSFORMERS_RESNET: Renaming = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"^encoder\.stages\.(\d+)\.layers\.", _next("layer", ".")),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.layer\.(\d+)\.convolution\.", _next(".conv", ".")),
    (r"\.layer\.(\d+)\.normalization\.", _next(".bn", ".")),
)
TRANSFORMERS_CONVNEXT: Renaming = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
    (r"^layernorm\.", "head.norm."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"\.layer_scale_parameter$", ".gamma"),
)
TRANSFORMERS_VIT: Renaming = (  # also DeiT, DINOv2 and Swin; names of versions 4 and 5
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"^encoder\.layers\.(\d+)\.downsample\.", _next("layers.", ".downsample.")),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.(?!blocks\.|downsample\.)", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.|self\.|relative_position_bias\.)?", ".attn."),
    (r"\.attn\.(q|k|v)(?:uery|ey|alue|_proj)\.", r".attn.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.(?:intermediate\.dense|mlp\.up_proj)\.", ".mlp.fc1."),
    (r"\.(?:output\.dense|mlp\.down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)
TRANSFORMERS_DINOV3: Renaming = (  # timm knows the authors' names by this one
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    *TRANSFORMERS_VIT,
)
TORCHVISION_VIT: Renaming = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)
TORCHVISION_CONVNEXT: Renaming = (
    (r"^features\.0\.", "stem."),
    (
        r"^features\.([246])\.(?=\d+\.(?:weight|bias)$)",
        lambda m: f"stages.{int(m[1]) // 2}.downsample.",
    ),
    (r"^features\.([1357])\.", lambda m: f"stages.{int(m[1]) // 2}.blocks."),
    (r"^classifier\.0\.", "head.norm."),
    (r"\.layer_scale$", ".gamma"),
    (r"\.block\.0\.", ".conv_dw."),
    (r"\.block\.2\.", ".norm."),
    (r"\.block\.3\.", ".mlp.fc1."),
    (r"\.block\.5\.", ".mlp.fc2."),
)
TORCHVISION_SWIN: Renaming = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.([246])\.", lambda m: f"layers.{int(m[1]) // 2}.downsample."),
    (r"^features\.([1357])\.", lambda m: f"layers.{int(m[1]) // 2}.blocks."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)
OTHER_LIBRARIES = (
    *(TRANSFORMERS_RESNET, TRANSFORMERS_CONVNEXT, TRANSFORMERS_VIT, TRANSFORMERS_DINOV3),
    *(TORCHVISION_VIT, TORCHVISION_CONVNEXT, TORCHVISION_SWIN),
)


@dataclass(frozen=True)
class FileOfWeights:
    """The tensors of a file.

    Attributes:
        path: of the file.
        tensors: by name in the file's order, those of inner dictionaries by the path of their keys.
    """

    path: Path
    tensors: State


def read_weights(path: Path) -> FileOfWeights:
    """Read a file of weights: safetensors, or a PyTorch state dict; no code in it is run.

    Raises:
        UserError: the file cannot be read, is damaged, holds something else than tensors, or its
            tensors would take far more memory than the file.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = _safetensors(read_safetensors(path))
        else:
            with open_file(path, LARGEST_FILE) as file:
                size = file.seek(0, 2)
                tensors = dict(_flat(_state_dict(file, size), size))
    except OSError as error:
        raise UserError(
            f"the weights {path} cannot be read ({why(error)}); give a file of weights"
            f" ({', '.join(ENDINGS)})."
        ) from error
    except (ValueError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or "there is not enough memory"
        if isinstance(error, JSONDecodeError | UnicodeDecodeError):
            reason = "its header is damaged or missing"
        raise UserError(
            f"the weights {path} cannot be used ({reason}); give a safetensors file or a PyTorch"
            " state dict that is whole."
        ) from error
    if not tensors:
        raise UserError(
            f"the weights {path} hold no tensors; give a safetensors file or a PyTorch state dict."
        )
    return FileOfWeights(path, tensors)


def _safetensors(data: bytes) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is damaged: {error}") from error


def _state_dict(file: IO[bytes], size: int) -> Any:
    """Return what a file of `torch.save` holds, as far as that is tensors and plain containers.

    A ValueError: it is damaged, or holds objects of other classes, which are not made.
    """
    if not size:
        raise ValueError("it is empty")
    if zipfile.is_zipfile(file):
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"it is damaged: {error}") from error
        if sum(entry.file_size for entry in entries) > size:  # torch compresses nothing
            raise ValueError("it would take more memory than the file has bytes")
        _check_sums(file)
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other protocols
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # torch seeks before the beginning of a file that is cut
            raise
        raise ValueError("it is damaged, or is no PyTorch file") from error
    except NOT_LOADED as error:
        text = str(error)
        if "TorchScript" in text:
            raise ValueError("it is a TorchScript program, and programs are not run") from error
        if re.search(r"global|instantiate|BUILD|function call", text, re.IGNORECASE):
            raise ValueError(
                "it holds objects other than tensors, and making them could run code; save the"
                " state_dict() of the network alone"
            ) from error
        raise ValueError("it is damaged, or is no PyTorch file") from error


def _check_sums(file: IO[bytes]) -> None:
    """Raise a ValueError if a part of a zip archive differs from its checksum.

    torch does not look at them, and would load a weight with a flipped bit.
    """
    try:
        damaged = zipfile.ZipFile(file).testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"it is damaged: {damaged} differs from its checksum")


def _flat(
    content: Any, size: int, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a dictionary and in those inside, each with the path of its keys.

    A ValueError: they would take much more memory than the file has bytes, or are not plain.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__} and no dictionary of tensors")
    if len(content) > MOST_TENSORS:
        raise ValueError(f"it holds more than {MOST_TENSORS:,} entries")
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
            if not plain or value.numel() * value.element_size() > size:
                raise ValueError(f"its tensor {name:.80} is not stored as plain numbers")
            yield name, value.detach()
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _flat(value, size, f"{name}.", depth + 1)


def fitted(
    network: nn.Module, weights: FileOfWeights, *, by_order: bool = False
) -> tuple[State, list[str]]:
    """Return the weights of a file by the names of a network, and sentences about how they fit.

    Args:
        network: an encoder without a classifier; its own values do not matter.
        weights: of a file.
        by_order: whether tensors may have other names, if they have the shapes of the network's in
            the same order.

    Returns:
        The complete state of the network in float32; and what a reader should know of it.

    Raises:
        UserError: the weights do not fit: the first names that are missing, that are left over and
            that have another shape; or a value is not finite.
    """
    tries = [
        _compared(network, prefix, state)
        for prefix in _prefixes(network, weights.tensors)
        for state in _renamed(below(prefix, weights.tensors))
    ]
    whole = [one for one in tries if not one.problems]
    if whole:
        best = next((one for one in whole if any(w in one.prefix for w in AVERAGED)), whole[0])
        state, notes = best.state, list(best.notes)
        if others := {one.prefix for one in whole} - {best.prefix}:
            notes.append(
                f"{weights.path} holds several networks that fit; the encoder starts from"
                f" {_shown_prefix(best.prefix)}, and not from"
                f" {' or '.join(map(_shown_prefix, sorted(others)))}."
            )
    elif by_order:
        state, notes = _by_order(network, weights)
    else:
        raise UserError(_refusal(network, weights, max(tries, key=lambda one: one.fits)))
    state = {n: v.float() if v.is_floating_point() else v for n, v in state.items()}
    for name, value in state.items():
        if not value.isfinite().all():
            raise UserError(
                f"the weights {weights.path} hold values that are not finite (in {name}); give"
                " weights of a training that did not diverge."
            )
    return state, notes


@dataclass(frozen=True)
class _Comparison:
    """The tensors below a prefix, by a network's names."""

    prefix: str
    state: State
    problems: list[str]  # parts of a sentence
    fits: int  # number of tensors that fit
    notes: list[str]


def _compared(network: nn.Module, prefix: str, tensors: State) -> _Comparison:
    """Return how the tensors below a prefix fit a network.

    They may have its names, or those of the original authors, which timm translates.
    """
    wanted = network.state_dict()
    found, notes = tensors, list[str]()
    if any(name not in tensors or tensors[name].shape != t.shape for name, t in wanted.items()):
        found = _translated(network, tensors)
        notes = [
            f"{name} of {_size(tensors[name])} becomes {_size(tensor)}, as timm does it."
            for name, tensor in found.items()
            if name in tensors and tensors[name].numel() != tensor.numel()
        ]
    found, of_channels = _with_channels(network, found)
    found |= {
        name: found[name].reshape(t.shape)  # a linear layer may be a convolution of one pixel
        for name, t in wanted.items()
        if name in found and _without_ones(found[name]) == _without_ones(t)
    }
    missing = [n for n in wanted if n not in found and not n.endswith(COUNTER)]
    extra = [n for n in found if n not in wanted and not n.startswith(HEADS)]
    extra = [n for n in extra if not n.endswith(BUFFERS)]
    others = [
        f"{n} is {_size(found[n])} in the file and {_size(t)} in the encoder"
        for n, t in wanted.items()
        if n in found and not _alike(found[n], t)
    ]
    problems = [
        f"{what}: {_first(those)}"
        for what, those in (
            ("missing in the file", missing),
            ("unknown to the encoder", extra),
            ("of another shape or kind", others),
        )
        if those
    ]
    state = {} if problems else {name: found.get(name, t) for name, t in wanted.items()}
    fits = len(wanted) - len(missing) - len(others)
    return _Comparison(prefix, state, problems, fits, [*notes, *of_channels])


def _alike(one: Tensor, other: Tensor) -> bool:
    same_kind = one.is_floating_point() == other.is_floating_point()
    return same_kind and one.shape == other.shape


def _without_ones(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length != 1]


def below(prefix: str, tensors: State) -> State:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _renamed(state: State) -> Iterator[State]:
    """Yield the tensors by their own names, and by timm's where another library named them."""
    yield state
    for table in OTHER_LIBRARIES:
        renamed = {_new_name(name, table): tensor for name, tensor in state.items()}
        if len(renamed) == len(state) and renamed.keys() != state.keys():
            yield _with_joined_attention(renamed)


def _new_name(name: str, table: Renaming) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _with_joined_attention(state: State) -> State:
    """Return tensors in which query, key and value are one layer, as timm has them.

    Where only queries and values have a bias, that of the keys is 0, which changes no attention.
    """
    joined = {n: t for n, t in state.items() if not re.search(r"\.attn\.[qkv]\.(weight|bias)$", n)}
    for name, query in state.items():
        if not name.endswith((".attn.q.weight", ".attn.q.bias")):
            continue
        start, kind = name.split(".q.")
        key = state.get(f"{start}.k.{kind}", torch.zeros_like(query) if kind == "bias" else None)
        value = state.get(f"{start}.v.{kind}")
        if key is not None and value is not None:
            joined[f"{start}.qkv.{kind}"] = torch.cat([query, key, value])
    return joined


def _translated(network: nn.Module, state: State) -> State:
    """Return tensors of the original authors by timm's names, as timm's own filter does it.

    A position embedding of another grid is resampled.
    """
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    patch = "patch_embed.proj.weight"
    wanted = network.state_dict().get(patch)
    if wanted is not None and patch in state and state[patch].shape[-2:] != wanted.shape[-2:]:
        return dict(state)  # timm would resample the patches too, but that is another network
    biases = [tensor for name, tensor in state.items() if name.endswith(".qkv.bias")]
    taken = any(name.endswith((".qkv.bias", ".q_bias")) for name in network.state_dict())
    if translate is None or (not taken and any(bias.any() for bias in biases)):
        return dict(state)  # timm would leave these biases out, and the features would be wrong
    try:
        with redirect_stdout(StringIO()):  # a filter prints what it does not find
            return dict(translate(dict(state), network))
    except Exception:  # the filter of an author trusts the file to be as it expects
        return dict(state)


def _size(tensor: Tensor) -> str:
    words = "x".join(map(str, tensor.shape)) or "a number"
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return words + kind


def _first(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(n[:120] for n in names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shown_prefix(prefix: str) -> str:
    return f"{prefix}*" if prefix else "those without a prefix"


def _prefixes(network: nn.Module, tensors: State) -> list[str]:
    """Return the prefixes below which a file may hold the network, in its order; "" is one."""
    needed = sum(not name.endswith(COUNTER) for name in network.state_dict()) // 2
    counts: dict[str, int] = {"": len(tensors)}
    for name in tensors:
        parts = name.split(".")
        for depth in range(1, min(len(parts), DEEPEST + 1)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    return [prefix for prefix, count in counts.items() if count >= needed or not prefix]


def _with_channels(network: nn.Module, state: State) -> tuple[State, list[str]]:
    """Return weights whose first convolution takes the channels of the network's."""
    from timm.models import adapt_input_conv

    first = (getattr(network, "pretrained_cfg", None) or {}).get("first_conv")
    name = f"{first}.weight"
    if not isinstance(first, str) or name not in state or state[name].ndim != 4:
        return state, []
    wanted, found = network.state_dict()[name], state[name]
    channels, before = wanted.shape[1], found.shape[1]
    if before != 3 or channels == 3 or found.shape[2:] != wanted.shape[2:]:
        return state, []
    how = "summed over its three" if channels == 1 else "its three repeated and scaled"
    count = "1 channel" if channels == 1 else f"{channels} channels"
    note = f"The first convolution takes {count} instead of 3: {how}, as timm does it."
    return {**state, name: adapt_input_conv(channels, found)}, [note]


def _by_order(network: nn.Module, weights: FileOfWeights) -> tuple[State, list[str]]:
    """Return the tensors of a file in their order, by the network's names."""
    if weights.path.suffix == ".safetensors":
        raise UserError(
            f"init_by_order needs a file that keeps the order of its tensors, and {weights.path},"
            " a safetensors file, sorts them by name; give a PyTorch state dict (.pth)."
        )
    problem, renamed, left, notes = _in_order(network, weights.tensors)
    if problem:
        raise UserError(
            f"the tensors of {weights.path} have neither the names nor the order of the encoder's:"
            f" {problem}; choose the encoder to which they belong."
        )
    names = [name for name in weights.tensors if not name.endswith(COUNTER)]
    own = list(renamed)
    note = (
        f"The {len(own)} tensors of {weights.path} are taken by their order, from {names[0]} as"
        f" {own[0]} to {names[len(own) - 1]} as {own[-1]}"
        f"{f', without the classifier ({_first(left)})' if left else ''}."
    )
    return network.state_dict() | renamed, [note, *notes]


def _in_order(network: nn.Module, tensors: State) -> tuple[str, State, list[str], list[str]]:
    """Return tensors in their order by the names of a network, and whether that is right.

    Returns:
        What differs between the two lists, but for a classifier at the end, or ""; the tensors by
        the network's names; the names of those at the end; and sentences about the channels.
    """
    found = [(n, t) for n, t in tensors.items() if not n.endswith(COUNTER)]
    wanted = [(n, t) for n, t in network.state_dict().items() if not n.endswith(COUNTER)]
    pairs = zip(wanted, found, strict=False)
    renamed, notes = _with_channels(network, {own: t for (own, _), (_, t) in pairs})
    problem, left = "", found[len(wanted) :]
    for (own, like), (name, _) in zip(wanted, found, strict=False):
        tensor, roles = renamed[own], (name.rpartition(".")[2], own.rpartition(".")[2])
        if not _alike(tensor, like) or (roles[0] != roles[1] and set(roles) <= set(ROLES)):
            problem = f"{name[:120]} ({_size(tensor)}) stands where {own} ({_size(like)}) is due"
            break
    else:
        if len(found) < len(wanted):
            problem = f"there are {len(found)} tensors, and the encoder has {len(wanted)}"
        elif len(left) > 2 or any(t.shape[:1] != left[0][1].shape[:1] for _, t in left):
            problem = f"there are {len(left)} more tensors behind those of the encoder"
        elif name := _backwards(n for n, _ in found):
            problem = f"{name[:120]} stands behind a block of a higher number"
    return problem, renamed, [name for name, _ in left], notes


def _backwards(names: Iterable[str]) -> str:
    """Return the first name whose first number is less than one before it, below the same prefix.

    Blocks of equal shapes may have changed places; "" if none has.
    """
    highest: dict[str, int] = {}
    for name in names:
        if numbered := re.match(r"(.*?)(?<![^.])(\d{1,6})\.", name):
            number = int(numbered[2])
            if number < highest.setdefault(numbered[1], number):
                return name
            highest[numbered[1]] = number
    return ""


def _refusal(network: nn.Module, weights: FileOfWeights, nearest: _Comparison) -> str:
    """Return the sentence for weights that do not fit."""
    problem = _in_order(network, weights.tensors)[0]
    same_order = weights.path.suffix != ".safetensors" and not problem
    advice = (
        "its tensors have the same shapes in the same order, so add init_by_order if they are"
        " weights of this encoder"
        if same_order
        else "choose the encoder to which they belong"
    )
    return (
        f"the weights {weights.path} do not fit the encoder ({'; '.join(nearest.problems)});"
        f" {advice}."
    )
