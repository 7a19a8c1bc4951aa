"""A trained run: its configuration, its network and its folder; `sureclr.load` opens one."""

import os
from copy import deepcopy
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sureclr.config import PretrainConfig, differing, from_dict, read_yaml
from sureclr.data.embeddings import Embeddings
from sureclr.data.user_images import to_embed
from sureclr.errors import UserError
from sureclr.files import read_json, unsealed
from sureclr.maths.objectives import Objective
from sureclr.models.devices import choose_device, embedding_precision, seeded
from sureclr.models.embedding import embed
from sureclr.models.simclr import SimCLR, StandardisedEncoder
from sureclr.progress import SILENT, Progress
from sureclr.training.building import build, is_own, own_network, recorded
from sureclr.training.run_dir import BACKBONE, Checkpoint, RunDir, check_numbers

REPR_PATH = 40  # characters of a path in a run's one-line description


@dataclass(frozen=True, repr=False)
class Run:
    """A trained network with what made it.

    Attributes:
        directory: the run folder.
        config: the configuration, complete.
        model: the network in evaluation mode, on the chosen device.
        objective: the loss with its state (the kernel dimension).
        size: height and width in pixels of the images that the model takes.
        channels: 1 for grey images, 3 for colour, or any other number of bands.
        source: name of the images that it was trained on: a data source, or that of an ImageSet.
        checkpoint: digest of the checkpoint that holds the weights; "" if none does, as before
            training.
        results_path: the folder in the run folder for what is computed from these weights, if they
            are not those of the last checkpoint; None: the run folder itself.
        out: a folder that the user chose for new results; None: they are kept in the run.
        not_kept: why new results cannot be kept at all, or "".
    """

    directory: RunDir
    config: PretrainConfig
    model: SimCLR
    objective: Objective
    size: int
    channels: int
    source: str
    checkpoint: str = ""
    results_path: Path | None = None
    out: Path | None = None
    not_kept: str = ""

    @property
    def results_folder(self) -> Path:
        """Return the folder where what is computed from the weights is kept, such as results.json.

        Also embeddings.parquet, map.parquet, report.html, and classifiers.
        """
        return self.out or self.results_path or self.path

    def stored(self, name: str) -> Path:
        """Return where a file of results is read: in `out` if it is there, else in the run.

        Args:
            name: of the file, relative to the folder of the results.
        """
        if self.out is not None and os.path.lexists(self.out / name):
            return self.out / name
        return (self.results_path or self.path) / name

    @property
    def which(self) -> str:
        """Return which checkpoint this is, as `load` takes it: "last", or its step in digits."""
        return "last" if self.results_path is None else str(int(self.results_path.name[5:]))

    @property
    def path(self) -> Path:
        """Return the path of the run folder."""
        return self.directory.path

    @property
    def encoder(self) -> StandardisedEncoder:
        """Return the encoder: float images (n, c, h, w) in [0, 1] to features (n, f).

        It is in evaluation mode, and standardises the images itself. On uint8 images of the run's
        size, `run.encoder(images / 255)` are the features of `run.embed(images)`, where that is in
        float32 (see `precision`).
        """
        return self.model.encoder

    @property
    def kernel_dimension(self) -> float | None:
        """Return m of the loss's likelihood; None if the loss has none."""
        return getattr(self.objective, "kernel_dimension", None)

    @property
    def precision(self) -> torch.dtype:
        """Return the type in which the network runs when images are embedded.

        It is that of the training if the device is fast in it, else float32. A table is float32 in
        any case.
        """
        return embedding_precision(self.config.precision, self.model.device)

    @property
    def precision_name(self) -> str:
        """Return the name of `precision`: float32 or bfloat16."""
        return str(self.precision).removeprefix("torch.")

    @property
    def made_in(self) -> str:
        """Return the words that the origin of a table has where it is not made in float32."""
        return "" if self.precision_name == "float32" else f"in {self.precision_name} "

    def embed(self, images: Any, progress: Progress = SILENT) -> Embeddings:
        """Return the table of these images, converted to the run's size and channels.

        Args:
            images: anything that `sureclr.as_image_set` takes. Of a run on a table of features:
                features (m, f) of whole images, an array or a tensor, or table:PATH.
            progress: gets the number of embedded images.
        """
        fitting = to_embed(images, self.config, self.size, self.channels)
        return embed(
            self.model,
            fitting,
            kernel_dimension=self.kernel_dimension,
            precision=self.precision,
            progress=progress,
        )

    def untrained(self) -> "Run":
        """Return the run as it was before its first step, the baseline of every evaluation.

        Of a pretrained encoder that is the encoder as it came, with untrained heads.

        Raises:
            UserError: the encoder is pretrained, or it or the loss is the user's own, and the file
                with its initial state is missing or damaged.
        """
        network, loss = self._own_copies()
        if self.config.pretrained:
            network = deepcopy(self.model.encoder.backbone).cpu()
        if network is not None or loss is not None:
            initial = self.directory.load_initial()
            for prefix, module in (("encoder.", network), ("objective.", loss)):
                if module is not None:
                    module.load_state_dict(_part(initial, prefix))
        return self._rebuilt(self.config, network, loss)

    def redrawn(self, seed: int) -> "Run":
        """Return the same network with random weights, untrained, drawn by another seed.

        In an encoder of the user's own, every module that has a method `reset_parameters` (all of
        torch's layers) is reset; other parameters keep their values. Those of an ONNX network are
        shuffled (see `OnnxBackbone.redrawn`).
        """
        network, loss = self._own_copies()
        if callable(redrawn := getattr(self.model.encoder.backbone, "redrawn", None)):
            network = redrawn(seed)
        elif network is not None:
            with seeded(seed):
                for module in network.modules():
                    if callable(reset := getattr(module, "reset_parameters", None)):
                        reset()
        config = replace(self.config, init="random", freeze="off", seed=seed)
        return self._rebuilt(config, network, loss)

    def _own_copies(self) -> tuple[nn.Module | None, Objective | None]:
        """Return copies of encoder and loss where they are the user's own."""
        config, backbone = self.config, self.model.encoder.backbone
        return (
            deepcopy(backbone).cpu() if is_own(config.encoder) else None,
            deepcopy(self.objective).cpu() if is_own(config.loss) else None,
        )

    def _rebuilt(
        self, config: PretrainConfig, network: nn.Module | None, loss: Objective | None
    ) -> "Run":
        mean, std, device = self.model.mean, self.model.std, self.model.device
        model, objective = build(config, self.channels, mean, std, network=network, loss=loss)
        return replace(
            self,
            config=config,
            model=model.to(device).eval(),
            objective=objective,
            checkpoint="",
        )

    def __repr__(self) -> str:
        """Describe the run in one line of at most 100 characters."""
        path = str(self.path)
        if len(path) > REPR_PATH:
            path = f"...{path[3 - REPR_PATH :]}"
        text = f"{self.config.encoder}, {self.config.loss} on {self.source}"
        return f"<Run {path}: {text if len(text) <= 52 else text[:49] + '...'}>"

    def _repr_html_(self) -> str:
        """Describe the run for a notebook, with accuracies where it was evaluated."""
        config = self.config
        rows = [
            ("folder", str(self.path)),
            ("trained on", f"{self.source}, {self.size} x {self.size} pixels"),
            ("encoder", f"{config.encoder}, {self.encoder.num_features} features"),
            ("loss", config.loss),
            ("epochs", f"{config.all_epochs:,}, batches of {config.batch_size:,} images"),
            *_accuracies(self.stored("results.json"), self.checkpoint),
        ]
        cells = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows
        )
        return f"<p><b>SureCLR run</b></p><table>{cells}</table>"


def _accuracies(results: Path, checkpoint: str) -> list[tuple[str, str]]:
    """Return the accuracies of a checkpoint in results.json in words, and which are damaged.

    There is nothing where the file has another form, or where a result is of other weights.
    """
    try:
        content = read_json(results)
    except (OSError, ValueError):
        return []
    rows = []
    for name, title in (("linear", "linear probe"), ("knn", "nearest neighbours")):
        if not isinstance(content, dict) or name not in content:
            continue
        try:
            entry = unsealed(content[name], name, required=content.get("schema") not in (1, 2))
        except (ValueError, RecursionError):
            rows.append((title, "the stored result is damaged; evaluate the run again"))
            continue
        try:
            if entry["provenance"]["checkpoint"] != checkpoint:
                continue
            low, high = entry["interval"]
            text = f"accuracy {entry['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f})"
        except (KeyError, TypeError, ValueError):
            continue
        rows.append((title, text))
    return rows


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def results_folder_of(path: str | Path, checkpoint: str | int = "last") -> Path:
    """Return the folder of what is computed from a checkpoint of a run, as in `load`.

    Raises:
        UserError: there is no such checkpoint.
    """
    return RunDir(Path(path)).results_folder(str(checkpoint))


def load(
    path: str | Path,
    device: str = "auto",
    *,
    checkpoint: str | int = "last",
    encoder: nn.Module | None = None,
    loss: Objective | None = None,
) -> Run:
    """Open a run folder, with the network of one of its checkpoints.

    Args:
        path: the run folder.
        device: auto, cuda, mps or cpu.
        checkpoint: "last", the newest one that is not damaged; "best", the one with the highest
            accuracy that the monitor measured; or a number of steps. What is computed from another
            one than the last has a folder of its own in the run folder, such as step-000000009.
        encoder: the user's own encoder, if the run was trained with one: a module of the same
            structure. A copy gets the weights of the run.
        loss: the user's own loss, if the run was trained with one.

    Raises:
        UserError: there is no run or no such checkpoint, it is damaged, the configuration was
            edited, or the encoder or the loss is missing or another one.
    """
    directory = RunDir(Path(path))
    if not directory.is_run():
        raise UserError(
            f"{path} is not a run folder (it has no config.yaml); choose a folder that pretrain"
            " wrote."
        )
    config = from_dict(read_yaml(directory.config))
    _check_own(directory.path, config, encoder, loss)
    which = str(checkpoint)
    loaded = directory.load_checkpoint(which)
    check_numbers(directory.path, loaded.numbers)
    recorded_one = from_dict(loaded.numbers["configuration"])
    if names := differing(recorded_one, config):
        later = directory.accepted_after(loaded.numbers)
        expected = recorded_one if later is None else from_dict(later)
        if not config.extends(expected):
            raise UserError(
                f"the checkpoint in {path} was made with another {', '.join(names)} than its"
                " config.yaml says; was the configuration edited? Restore the original."
            )
        config = recorded_one  # from before an extension, or changes that the user accepted
    encoder = encoder or directory.onnx_network(config)
    model, objective = _restored(directory.path, config, loaded, encoder, loss)
    chosen, numbers = choose_device(device), loaded.numbers
    folder = directory.results_folder(which)
    return Run(
        directory,
        config,
        model.to(chosen).eval(),
        objective.to(chosen),
        numbers["size"],
        numbers["channels"],
        numbers["source"],
        loaded.digest,
        None if folder == directory.path else folder,
    )


def _check_own(path: Path, config: PretrainConfig, encoder: Any, loss: Any) -> None:
    """Raise a `UserError` if the user's own encoder or loss is missing or another one."""
    for argument, value, passed in (
        ("encoder", encoder, recorded(config, encoder, None)),
        ("loss", loss, recorded(config, None, loss)),
    ):
        name = getattr(config, argument)
        if value is None and is_own(name):
            raise UserError(
                f"the run in {path} was trained with your own {argument} ({name}), whose code is"
                f" not stored in it; pass the object again: sureclr.load({str(path)!r},"
                f" {argument}=...)."
            )
        if value is not None and (names := differing(passed, config)):
            raise UserError(
                f"the run in {path} was trained with another {argument} than you passed"
                f" ({names[0]}: {getattr(config, names[0])} in the run, {getattr(passed, names[0])}"
                f" now); pass the one it was trained with, or leave {argument} out."
            )


def _restored(
    path: Path,
    config: PretrainConfig,
    checkpoint: Checkpoint,
    encoder: nn.Module | None,
    loss: Objective | None,
) -> tuple[SimCLR, Objective]:
    """Return model and loss with the state of a checkpoint."""
    parts, numbers = checkpoint.parts, checkpoint.numbers
    channels, size = numbers["channels"], numbers["size"]
    if config.freeze == "backbone" and not config.of_table:
        frozen = RunDir(path).load_backbone(numbers)
        parts["model"] |= {f"{BACKBONE}{name}": value for name, value in frozen.items()}
    try:
        mean, std = parts["model"]["encoder.mean"], parts["model"]["encoder.std"]
        network = None if encoder is None else own_network(encoder, (channels, size, size))
        # the weights come from the checkpoint
        named = replace(config, init="random", freeze="off")
        model, objective = build(
            named,
            channels,
            mean,
            std,
            network=network,
            loss=deepcopy(loss),
            weights=parts["model"],
        )
        model.load_state_dict(parts["model"])
        objective.load_state_dict(parts["objective"])
    except (KeyError, RuntimeError) as error:
        advice = (
            "it was made by another version of SureCLR: use that one"
            if encoder is None and loss is None
            else "pass the same encoder and loss that it was trained with"
        )
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint in {path} does not fit its config.yaml ({reason}); {advice}."
        ) from error
    return model, objective
