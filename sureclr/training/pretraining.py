"""Contrastive pretraining: the step on one screen, and the loop around it."""

import json
import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.config import PretrainConfig, differing, from_dict, read_yaml, to_yaml
from sureclr.data.batches import batch, steps_per_epoch
from sureclr.data.image_set import ImageSet, convert
from sureclr.data.user_images import as_image_set
from sureclr.data.views import two_views
from sureclr.errors import UserError
from sureclr.files import json_bytes, remove, write_atomically
from sureclr.maths.objectives import Objective
from sureclr.maths.sphere import Posterior
from sureclr.models.embedding import evaluating
from sureclr.models.simclr import SimCLR
from sureclr.progress import ConsoleProgress
from sureclr.stopping import StopFlag, stop_on_signals
from sureclr.training import accumulate
from sureclr.training.devices import choose_device, choose_precision
from sureclr.training.monitor import Monitor, collapse_warning
from sureclr.training.optimizers import learning_rate, optimizer, set_learning_rate
from sureclr.training.progress import Lines, Reporter
from sureclr.training.run import Run, build, environment, pixel_statistics
from sureclr.training.run_dir import OF_THE_WEIGHTS, RunDir, default_name
from sureclr.training.track import Tracker, check_tracker, tracker

# Of a GPU's memory that the uint8 images may take; larger sets stay where they are and move batch
# by batch
RESIDENT_SHARE = 0.25


@dataclass
class Trainer:
    """All that a step changes (model, objective, optimizer, number of steps done) and all that it
    needs.
    """

    config: PretrainConfig
    images: ImageSet
    model: SimCLR
    objective: Objective
    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    done: int = 0

    @property
    def device(self) -> torch.device:
        return self.model.mean.device

    @property
    def per_epoch(self) -> int:
        return steps_per_epoch(len(self.images), self.config.batch_size)

    @property
    def steps(self) -> int:
        return self.per_epoch * self.config.epochs

    def step(self) -> tuple[float, Posterior]:
        """One step of the optimizer over config.batch_size images; the loss in nats, and the
        posteriors of its 2n views.
        """
        set_learning_rate(self.optimizer, self.rate())
        self.optimizer.zero_grad(set_to_none=True)
        loss, posterior = self.gradient()
        if not math.isfinite(value := float(loss)):
            raise self.diverged(f"the loss is {value}")
        self.optimizer.step()
        self.done += 1
        return value, posterior

    def diverged(self, sign: str) -> UserError:
        return UserError(
            f"{sign} at step {self.done}, so training has diverged; lower --learning-rate (now"
            f" {self.config.learning_rate}) or raise --temperature. The last checkpoint is from"
            " before."
        )

    def check_weights(self) -> None:
        """Before a checkpoint: a loss can be finite when its gradient was not."""
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise self.diverged("a weight is not finite")

    def gradient(self) -> tuple[Tensor, Posterior]:
        """Add the gradient of the next step's loss to the parameters; the loss and its posteriors,
        detached.
        """
        config, (epoch, number) = self.config, divmod(self.done, self.per_epoch)
        indices, seeds = batch(config.seed, epoch, number, len(self.images), config.batch_size)
        pixels = self.images.images[indices.to(self.images.images.device)].to(
            self.device, non_blocking=True
        )
        return accumulate.backward(
            self.model,
            self.objective,
            lambda part: two_views(pixels[part], seeds[part], config.views),
            config.batch_size,
            config.micro_batch,
            self.generator(),
            self.precision,
        )

    def rate(self) -> float:
        warmup = min(round(self.config.warmup_epochs * self.per_epoch), self.steps // 2)
        return learning_rate(self.done, self.steps, warmup, self.config.learning_rate)

    def generator(self) -> torch.Generator:
        """For losses that sample: a function of seed and step, so that a resumed run draws the
        same.
        """
        return torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + self.done)

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Tensors by file, and numbers, of a checkpoint."""
        state = self.optimizer.state_dict()["state"]
        tensors = {
            f"{index}.{key}": torch.as_tensor(value)
            for index, entry in state.items()
            for key, value in entry.items()
            if value is not None
        }
        numbers = {
            "step": self.done,
            "size": self.images.images.shape[-1],
            "channels": self.images.images.shape[1],
            "source": self.images.name,
            "configuration": asdict(self.config),
        }
        return {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": tensors,
        }, numbers

    def restore(self, parts: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        self.model.load_state_dict(parts["model"])
        self.objective.load_state_dict(parts["objective"])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self.done = numbers["step"]


def trainer(config: PretrainConfig, images: ImageSet, device: torch.device) -> Trainer:
    """A trainer at step 0 for these training images."""
    steps_per_epoch(len(images), config.batch_size)
    mean, std = pixel_statistics(images, config)
    model, objective = build(config, images.images.shape[1], mean, std)
    _check_size(model, config.encoder, images.images.shape[1:])
    model.to(device).train()
    objective.to(device).train()
    made = optimizer(config.optimizer, model, config.learning_rate, config.weight_decay)
    return Trainer(
        config, images, model, objective, made, choose_precision(config.precision, device)
    )


def _check_size(model: SimCLR, name: str, shape: torch.Size) -> None:
    """UserError where the encoder cannot take images of this shape (c, h, w), found by trying two
    black ones.
    """
    try:
        with evaluating(model):
            model.features(torch.zeros(2, *shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"encoder {name} cannot take images of {shape[-1]} pixels"
            f" ({' '.join(str(error).split())[:120]}); choose another --size or encoder."
        ) from error


def fitting(
    config: PretrainConfig, images: ImageSet, device: torch.device, told: Reporter, probe: bool
) -> Trainer:
    """A trainer at step 0 whose batch fits into memory: where micro_batch is not given, half the
    images at a time until one does.

    Args:
        probe: try the first gradient and see (on accelerators; a CPU swaps instead of saying no).
            Its traces are thrown away.

    Raises:
        UserError: nothing fits.
    """
    chosen = config
    while probe and config.micro_batch is None and not _fits(chosen, images, device):
        size = chosen.micro_batch or chosen.batch_size
        if size % 2 or size < 4:
            raise UserError(
                f"{size} images do not fit into the device's memory, and {size} cannot be halved;"
                " choose a batch_size that is a power of two, a smaller --micro-batch, encoder or"
                " size."
            )
        chosen = replace(chosen, micro_batch=size // 2)
    if chosen != config:
        told.say(
            f"{config.batch_size} images do not fit into the device's memory at once: exact"
            f" accumulation with --micro-batch {chosen.micro_batch} (BN statistics are those of a"
            " micro-batch)"
        )
    return trainer(chosen, images, device)


def _fits(config: PretrainConfig, images: ImageSet, device: torch.device) -> bool:
    """Whether the gradient of a step can be had."""
    try:
        trainer(config, images, device).gradient()
    except torch.OutOfMemoryError:
        return False
    return True


def pretrain(
    config: PretrainConfig,
    images: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    track: str | None = None,
    root: Path | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Train as `config` says and return the run, whose folder holds everything.

    Args:
        images: instead of config.source: an ImageSet, a uint8 array (n, c, h, w) or (n, h, w), or a
            list of PIL images.
        out: run folder; None: runs/SOURCE-LOSS-ENCODER-DATE.
        resume, overwrite: what to do with a run that is already there; neither: refuse.
        device: auto, cuda, mps, cpu.
        track: "tensorboard" or "wandb" also gets the numbers.
        root: where data sets lie.
        reporter: who is told of the progress; None: lines on stderr.

    Raises:
        UserError: bad input, in one sentence; nothing is overwritten.
        Stopped: SIGINT or SIGTERM, after a checkpoint.
    """
    directory = RunDir(
        Path(out)
        if out
        else default_name(config.source, config.loss, config.encoder, datetime.now())
    )
    directory.check(resume, overwrite)
    check_tracker(track)
    chosen, told = choose_device(device), reporter or Lines()
    training = _training_images(config, images, root, chosen)
    if resume and config.micro_batch is None:  # what was found to fit when the run began
        config = replace(config, micro_batch=from_dict(read_yaml(directory.config)).micro_batch)
    made = fitting(config, training, chosen, told, probe=chosen.type != "cpu" and not resume)
    config = made.config
    directory.prepare(resume, overwrite)
    with ExitStack() as stack:
        stack.enter_context(directory.lock())
        stop = stack.enter_context(stop_on_signals())
        following = stack.enter_context(tracker(track, directory.path / "track", config))
        _continue(directory, made) if resume else _begin(directory, config)
        _loop(made, directory, Monitor.of(training, config.seed), stop, told, following)
        write_encoder(directory, made)
    return Run(
        directory,
        config,
        made.model.eval(),
        made.objective.eval(),
        training.images.shape[-1],
        training.images.shape[1],
        training.name,
    )


def _training_images(
    config: PretrainConfig, images: Any, root: Path | None, device: torch.device
) -> ImageSet:
    """What may be trained on, moved to the device once where it fits."""
    from sureclr.data.sources import load_images

    everything = (
        load_images(
            config.source,
            root=root,
            size=config.size,
            seed=config.seed,
            progress=ConsoleProgress(),
        )
        if images is None
        else convert(
            as_image_set(images, size=config.size, progress=ConsoleProgress()), config.size
        )
    )
    training = everything.pretraining
    if (
        device.type == "cuda"
        and training.images.nbytes
        < RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory
    ):
        return ImageSet(
            **{f.name: getattr(training, f.name) for f in fields(ImageSet)}
            | {"images": training.images.to(device)}
        )
    return training


def _begin(directory: RunDir, config: PretrainConfig) -> None:
    write_atomically(directory.config, to_yaml(config).encode())
    write_atomically(directory.path / "environment.json", json_bytes(environment()))


def _continue(directory: RunDir, made: Trainer) -> None:
    """Restore the newest checkpoint; the configuration must be the one that the run began with."""
    before = from_dict(read_yaml(directory.config))
    if names := differing(before, made.config):
        name = names[0]
        raise UserError(
            f"--resume continues a run as it began, and {', '.join(names)} differs ({name}:"
            f" {getattr(before, name)} in {directory.config}, now {getattr(made.config, name)});"
            " leave the option out, or start another run."
        )
    if directory.saved():
        made.restore(*directory.load_checkpoint())
    directory.forget_after(made.done)
    if made.done < made.steps:  # what was evaluated half-way is of other weights
        for name in OF_THE_WEIGHTS:
            remove(directory.path / name)


def _loop(
    made: Trainer,
    directory: RunDir,
    monitor: Monitor,
    stop: StopFlag,
    told: Reporter,
    following: Tracker,
) -> None:
    config, saved = made.config, f"continue with --resume --out {directory.path}"
    told.start(made.steps, made.done)
    try:
        while made.done < made.steps:
            began = time.monotonic()
            loss, posterior = made.step()
            numbers = step_numbers(made, loss, posterior, time.monotonic() - began)
            if made.done % made.per_epoch == 0:
                numbers |= _look(made, directory, monitor, told)
            directory.log(numbers)  # before the checkpoint: a crash between the two loses no line
            following(numbers)
            told.step(numbers)
            if stop or made.done == made.steps or _due(made, config.checkpoint_every):
                made.check_weights()
                directory.save_checkpoint(made.done, *made.state())
            stop.check(saved)
    finally:
        told.end()


def step_numbers(
    made: Trainer, loss: float, posterior: Posterior, seconds: float
) -> dict[str, float]:
    """A line of metrics.jsonl: loss in nats, mean cosine of positives, mean radius, learning rate
    of the next step, images/s.
    """
    first, second = posterior.direction.chunk(2)
    numbers = {
        "epoch": made.done / made.per_epoch,
        "step": made.done,
        "loss": loss,
        "cosine_positive": float((first * second).sum(-1).mean()),
        "learning_rate": made.rate(),
        "images_per_second": made.config.batch_size / seconds,
    }
    if posterior.radius is not None:
        numbers["radius_views"] = float(posterior.radius.mean())
    dimension = getattr(made.objective, "kernel_dimension", None)
    return numbers if dimension is None else {**numbers, "kernel_dimension": float(dimension)}


def _due(made: Trainer, every: int) -> bool:
    """Whether something that is done every so many epochs (0: never), and at the end, is due after
    this step.
    """
    epoch, rest = divmod(made.done, made.per_epoch)
    return bool(every) and rest == 0 and (epoch % every == 0 or made.done == made.steps)


def _look(made: Trainer, directory: RunDir, monitor: Monitor, told: Reporter) -> dict[str, float]:
    """After an epoch: the monitor's numbers and a snapshot, where they are due."""
    config, epoch = made.config, made.done // made.per_epoch
    if not (_due(made, config.monitor_every) or _due(made, config.snapshot_every)):
        return {}
    numbers, tensors = monitor.look(made.model, config.views)
    told.say(
        f"epoch {epoch}  " + "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
    )
    if warning := collapse_warning(numbers):
        told.say(warning)
    if _due(made, config.snapshot_every):
        save_snapshot(
            directory.snapshots / f"epoch-{epoch:05d}.safetensors",
            tensors,
            {"epoch": epoch, **numbers},
        )
    return numbers


def save_snapshot(path: Path, tensors: dict[str, Tensor], numbers: dict[str, float]) -> None:
    """Features and posterior of the fixed images at one epoch; the numbers as JSON in the file's
    metadata.
    """
    from safetensors.torch import save

    data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(data, {"numbers": json.dumps(numbers)}))


def write_encoder(directory: RunDir, made: Trainer) -> None:
    """The encoder's weights alone, with what is needed to use them as JSON in the metadata, under
    the key `sureclr`.
    """
    from safetensors.torch import save

    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in made.model.encoder.state_dict().items()
    }
    about = {
        "encoder": made.config.encoder,
        "stem": made.config.stem,
        "channels": made.images.images.shape[1],
        "size": made.images.images.shape[-1],
        "mean": made.model.mean.tolist(),
        "std": made.model.std.tolist(),
    }
    # one key: safetensors writes several in random order, and equal runs would differ in their
    # bytes
    write_atomically(
        directory.path / "encoder.safetensors", save(weights, {"sureclr": json.dumps(about)})
    )
