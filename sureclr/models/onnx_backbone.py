"""A frozen encoder in an ONNX file, which onnxruntime runs.

An ONNX file is a graph of known operators and their weights. Nothing in it is executed as code:
operators that onnxruntime does not have are refused, libraries of custom operators are never
loaded, and files that it names are read only from its own folder.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sureclr.config import Pooling
from sureclr.data.pictures import MOST_BANDS
from sureclr.errors import UserError
from sureclr.files import open_file, read_file

SUFFIX = ".onnx"
LARGEST = (1 << 31) - 1  # bytes of a message that protobuf reads
USUAL_SIZE, USUAL_CHANNELS = 224, 3  # of images for a network that takes any
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
QUIET = 4  # onnxruntime logs only what ends the process; all other errors are raised


def is_onnx(init: str) -> bool:
    """Return whether first weights are named by the path of an ONNX file."""
    return init.lower().endswith(SUFFIX)


def read_onnx(path: Path) -> bytes:
    """Return an ONNX file as one message that holds all its weights.

    PyTorch's exporter puts the weights into a second file beside the first, and graph and weights
    are joined here.

    Args:
        path: of the file. A link to it is followed, as the cache of the Hugging Face hub needs.

    Raises:
        UserError: the package onnx is missing; the file cannot be read, is no ONNX file, or has
            more than 2 GiB; or its weights are missing or lie outside of its folder.
    """
    try:
        data = read_file(path, LARGEST)
    except OSError as error:
        raise UserError(
            f"the ONNX file {path} cannot be read ({error.strerror or error}); give another file as"
            " init."
        ) from error
    model = _parsed(data, path)
    outside = [tensor for tensor in _tensors(model) if tensor.data_location == tensor.EXTERNAL]
    if not outside:
        return data
    places = [_place(tensor, path) for tensor in outside]
    total = len(data) + sum(length for *_, length in places)
    if total > LARGEST:
        raise UserError(
            f"the ONNX network {path} has {total / 2**30:,.1f} GiB with its weights, and at most 2"
            " are read; export a smaller one, or its weights in float16."
        )
    for tensor, (file, offset, length) in zip(outside, places, strict=True):
        tensor.raw_data = _bytes_of(file, offset, length, path)
        del tensor.external_data[:]
        tensor.data_location = tensor.DEFAULT
    return cast(bytes, model.SerializeToString())


def _parsed(data: bytes, path: Path) -> Any:
    """Return the message in an ONNX file."""
    try:
        from google.protobuf.message import DecodeError
        from onnx import load_model_from_string
    except ImportError as error:
        raise _missing(error) from error
    try:
        model = load_model_from_string(data)
    except DecodeError as error:
        raise UserError(
            f"{path} is not an ONNX file, or it is damaged ({' '.join(str(error).split())[:120]});"
            " export the network again."
        ) from error
    if not model.ir_version or not model.graph.node or not model.graph.output:
        raise UserError(f"{path} is not an ONNX file: no network is in it; export it again.")
    return model


def _missing(error: ImportError) -> UserError:
    return UserError(
        f"an ONNX backbone needs the packages onnx and onnxruntime ({error}); pip install"
        " 'sureclr[onnx]'."
    )


def _tensors(model: Any) -> Iterator[Any]:
    """Iterate over all stored tensors of a model, also those inside control flow and functions."""
    for function in model.functions:
        yield from _of_nodes(function.node)
    yield from _of_graph(model.graph)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)


def _place(tensor: Any, path: Path) -> tuple[Path, int, int]:
    """Return the file of a tensor's values, where they begin, and how many bytes they have."""
    about = {entry.key: entry.value for entry in tensor.external_data}
    file = path.parent / about.get("location", "")
    inside = (path.parent.resolve(), path.resolve().parent)
    found = file.resolve()
    if not any(found.is_relative_to(folder) and found != folder for folder in inside):
        raise UserError(
            f"the ONNX file {path} names weights outside of its folder"
            f" ({about.get('location', '')[:120]!r}), which are not read; export the network again."
        )
    try:
        with open_file(file) as opened:
            size = opened.seek(0, 2)
        offset = int(about.get("offset", 0))
        length = int(about.get("length", size - offset))
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError(f"it has {size:,} bytes, and {offset + length:,} are needed")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the weights of the ONNX file {path} cannot be read from {file} ({reason}); keep both"
            " files together, as they were exported."
        ) from error
    return file, offset, length


def _bytes_of(file: Path, offset: int, length: int, path: Path) -> bytes:
    try:
        with open_file(file) as opened:
            opened.seek(offset)
            return opened.read(length)
    except OSError as error:
        raise UserError(
            f"the weights of the ONNX file {path} cannot be read from {file} ({error.strerror})."
        ) from error


class _Sessions(dict[tuple[str, int], Any]):
    """The newest session of a network, by its device and its number of threads.

    Copies of a network share it: a session cannot be copied, and nothing changes it.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Sessions":
        return self


class OnnxBackbone(nn.Module):
    """A network in ONNX that maps standardised images (n, c, h, w) to features (n, f).

    It has no parameters, and gradients do not pass through it. It runs on the CPU with as many
    threads as torch, or on the GPU of its images if onnxruntime has CUDA. Copies share the network.

    Its output is float32: vectors (n, f); maps (n, f, h, w), which are averaged over positions; or
    tokens (n, t, f), which `pool` makes into a vector. Of several outputs the first one that has
    vectors is used.

    Args:
        data: of the file, as `read_onnx` returns it.
        name: of the file, for error messages.
        pool: of tokens. token: the first one, which is the class token of a vision transformer.
            avg: the mean over the tokens of patches, which are the last s^2 of them, where s^2 is
            the largest square. auto: token, or avg if there are tokens of patches alone.
        size: side of the images in pixels; None: that of the network, or 224.
        channels: of the images; None: those of the network, or 3.

    Attributes:
        num_features: f, found by a trial.
        size: side of the images that the network takes; None: it takes any.
        channels: of these images; None: it takes any.
        output: name of the output that is used.
        data: of the file.
        digest: (32,) uint8, its sha256. It is the only state, and another one cannot be loaded.

    Raises:
        UserError: onnxruntime is missing or does not know the network, or its inputs or outputs
            have another form.
    """

    digest: Tensor

    def __init__(
        self,
        data: bytes,
        name: str,
        *,
        pool: Pooling = "auto",
        size: int | None = None,
        channels: int | None = None,
    ) -> None:
        """Make a session of the network, and try it."""
        super().__init__()
        self.data, self.name, self.pool = data, name, pool
        self.sessions = _Sessions()
        self.tried = {"size": size, "channels": channels}
        sha256 = hashlib.sha256(data).digest()
        self.register_buffer("digest", torch.tensor(list(sha256), dtype=torch.uint8))
        session = self._session(torch.device("cpu"))
        self.batch, self.channels, self.size = self._input_form(session)
        for what, fixed, given in (
            ("pixels", self.size, size),
            ("channels", self.channels, channels),
        ):
            if fixed is not None and given not in (None, fixed):
                raise UserError(
                    f"the ONNX network {name} takes images of {fixed} {what}, and those of this run"
                    f" have {given}; leave out {'size' if what == 'pixels' else what}, or set it to"
                    f" {fixed}."
                )
        side = size or self.size or USUAL_SIZE
        blank = torch.zeros(2, channels or self.channels or USUAL_CHANNELS, side, side)
        self.output = self._chosen_output(session, blank.numpy())
        self.num_features = self(blank).shape[1]

    def _session(self, device: torch.device) -> Any:
        """Return the session for a device and today's number of threads."""
        key = (str(device), torch.get_num_threads())
        if key not in self.sessions:
            try:
                import onnxruntime
            except ImportError as error:
                raise _missing(error) from error
            options = onnxruntime.SessionOptions()
            options.log_severity_level = QUIET
            options.intra_op_num_threads, options.inter_op_num_threads = key[1], 1
            providers: list[Any] = ["CPUExecutionProvider"]
            if device.type == "cuda" and (
                (cuda := "CUDAExecutionProvider") in onnxruntime.get_available_providers()
            ):
                providers.insert(0, (cuda, {"device_id": device.index or 0}))
            self.sessions.clear()
            try:
                self.sessions[key] = onnxruntime.InferenceSession(self.data, options, providers)
            except Exception as error:  # its classes have no other base
                raise UserError(
                    f"onnxruntime cannot run the network {self.name} ({_reason(error)}); operators"
                    " of other libraries are not loaded: export the network with ONNX's own."
                ) from error
        return self.sessions[key]

    def _input_form(self, session: Any) -> tuple[int | None, int | None, int | None]:
        """Return the fixed batch, channels and side of the images; None for those that are free."""
        inputs = session.get_inputs()
        described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)[:200]
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in FLOATS:
            raise UserError(
                f"the ONNX network {self.name} must have one input of float images (n, c, h, w),"
                f" and it has {described or 'none'}; export the image encoder alone."
            )
        batch, channels, height, width = (
            side if isinstance(side, int) and side > 0 else None for side in shape
        )
        last = width is not None and width <= 4
        if last and (channels is None or channels > MOST_BANDS or channels == height):
            raise UserError(
                f"the ONNX network {self.name} takes images with the channels last ({described}),"
                " and SureCLR gives (n, c, h, w); export it with the channels first."
            )
        if height is not None and width is not None and height != width:
            raise UserError(
                f"the ONNX network {self.name} takes images of {height} x {width} pixels, and those"
                " of a run are squares; export it for square images."
            )
        return batch, channels, height if height is not None else width

    def _chosen_output(self, session: Any, blank: NDArray[np.float32]) -> str:
        """Return the name of the output that has features, and notice a batch that is fixed."""
        try:
            outputs = self._run(session, blank, None)
        except UserError:
            if self.batch is not None:
                raise
            self.batch = 1  # the graph has a batch of one inside, whatever its input says
            outputs = self._run(session, blank, None)
        names = [output.name for output in session.get_outputs()]
        usable = {
            name: value.ndim
            for name, value in zip(names, outputs, strict=True)
            if isinstance(value, np.ndarray)
            and value.ndim in (2, 3, 4)
            and value.dtype in FLOATS.values()
            and len(value) == len(blank)
        }
        chosen = next((name for name, axes in usable.items() if axes == 2), None)
        if chosen is None and len(usable) == 1:
            (chosen,) = usable
        if chosen is None:
            shapes = ", ".join(
                f"{name} {getattr(value, 'shape', type(value).__name__)}"
                for name, value in zip(names, outputs, strict=True)
            )
            raise UserError(
                f"the ONNX network {self.name} must return features (n, f), maps (n, f, h, w) or"
                f" tokens (n, t, f), and for {len(blank)} images it returned {shapes[:200]}; export"
                " it with one such output."
            )
        return cast(str, chosen)

    def _run(self, session: Any, images: NDArray[Any], output: str | None) -> list[Any]:
        """Return the outputs for images (n, c, h, w), all or one, some images at a time."""
        entry = session.get_inputs()[0]
        images = images.astype(FLOATS[entry.type], copy=False)
        names = None if output is None else [output]
        step = self.batch or len(images)
        parts = []
        for start in range(0, len(images), step):
            block = images[start : start + step]
            # a batch that is fixed is filled up with the last image
            filled = np.concatenate([block, *[block[-1:]] * (step - len(block))])
            try:
                found = session.run(names, {entry.name: filled})
            except Exception as error:  # its classes have no other base
                raise UserError(
                    f"the ONNX network {self.name} cannot take images of {images.shape[-1]} pixels"
                    f" with {images.shape[1]} channels ({_reason(error)}); choose the size and the"
                    " channels that it was exported for."
                ) from error
            parts.append([value[: len(block)] for value in found])
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def forward(self, images: Tensor) -> Tensor:
        """Map standardised images (n, c, h, w) to features (n, f), float32 on the same device.

        Raises:
            UserError: the network cannot take images of this shape.
        """
        return cast(Tensor, _WithoutGradient.apply(images, self))  # type: ignore[no-untyped-call]

    def features(self, images: Tensor) -> Tensor:
        """Do what `forward` does, outside of torch's graph."""
        array = images.detach().float().contiguous().cpu().numpy()
        (values,) = self._run(self._session(images.device), array, self.output)
        output = torch.from_numpy(values).float()
        if output.ndim == 4:
            output = output.mean((2, 3))
        elif output.ndim == 3:
            output = self._pooled(output)
        return output.to(images.device)

    def _pooled(self, tokens: Tensor) -> Tensor:
        """Return one vector of the tokens (n, t, f) of an image."""
        count = tokens.shape[1]
        patches = math.isqrt(count) ** 2
        if self.pool == "token" and patches == count:
            raise UserError(
                f"pool token takes a class token, and the ONNX network {self.name} returns"
                f" {count} tokens, one for each patch; use pool avg."
            )
        if self.pool == "avg" or patches == count:
            return tokens[:, count - patches :].mean(1)
        return tokens[:, 0]

    def redrawn(self, seed: int) -> "OnnxBackbone":
        """Return a network of the same graph whose weights mean nothing.

        The values of each tensor with two or more axes are shuffled. Nothing of what was learned is
        left but their distribution, which keeps the features finite.

        Args:
            seed: of the order.
        """
        from onnx.numpy_helper import from_array, to_array

        model, random = _parsed(self.data, Path(self.name)), np.random.default_rng(seed)
        for tensor in _tensors(model):
            if len(tensor.dims) >= 2:
                values = to_array(tensor)
                shuffled = random.permutation(values.ravel()).reshape(values.shape)
                tensor.CopyFrom(from_array(shuffled, tensor.name))
        return OnnxBackbone(model.SerializeToString(), self.name, pool=self.pool, **self.tried)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Refuse the state of another network: the weights lie in the file and not in the state."""
        digest = state_dict.get(f"{prefix}digest")
        if digest is not None and not torch.equal(digest.cpu(), self.digest.cpu()):
            raise UserError(
                f"the ONNX network {self.name} is another one than that with which this run was"
                " trained (its sha256 differs); restore the file."
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Describe the network for torch's description of a model."""
        return f"{self.name}, output {self.output}, {self.num_features} features"


class _WithoutGradient(torch.autograd.Function):
    """A network outside of torch, through which no gradient passes."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, network: OnnxBackbone) -> Tensor:
        ctx.name = network.name
        return network.features(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise UserError(
            f"gradients do not pass through the ONNX network {ctx.name}; train heads on its"
            " features alone (freeze backbone)."
        )


def _reason(error: Exception) -> str:
    """Return why onnxruntime failed, in one line without its codes."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1][:200] if text.startswith("[ONNXRuntimeError]") else text[:200]
