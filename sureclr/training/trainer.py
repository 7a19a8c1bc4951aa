"""The step of contrastive pretraining, and the state that it changes.

No step waits for an accelerator: what the next step needs is prepared on the CPU and sent while the
device still computes the last one, and nothing that a step computes is read in it (records.py reads
the numbers of several steps together).
"""

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate as running_sums
from typing import Any

import torch
from torch import Tensor

from sureclr.config import PretrainConfig, TrainingPart
from sureclr.data.batches import steps_per_epoch
from sureclr.data.image_set import ImageSet
from sureclr.errors import UserError
from sureclr.maths.inputs import OutOfRange
from sureclr.maths.objectives import Objective
from sureclr.maths.sphere import Posterior
from sureclr.models.simclr import SimCLR
from sureclr.training import accumulate
from sureclr.training.optimizers import learning_rate, set_learning_rate
from sureclr.training.run_dir import BACKBONE, KEPT_CHECKPOINTS, Monitored, as_monitored
from sureclr.training.step_views import (
    FeatureViews,
    StepViews,
    ViewsOf,
    prepared_features,
    prepared_views,
)

# The keys of `Trainer.record`
RECORDED = ("images", "count", "origins", "snapshots", "changes", "backbone", "ends")


@dataclass
class Trainer:
    """All that a step changes, and all that it needs.

    Attributes:
        config: of the run.
        images: the training images. Views are cropped from their whole pictures where they have
            any, and have the size of the square images.
        model: the network, in training mode.
        objective: the loss.
        optimizer: of the model's parameters.
        precision: in which the network runs.
        ahead: whether the program may run ahead of the device, as it does of an accelerator: it
            prepares the next step after each one, and losses are read later.
        done: number of steps done.
        record: what every checkpoint stores beside the state: the digest of the images, the
            changes that were accepted when the run was resumed, and the digest of the weights of a
            frozen backbone.
        saved_step: the step of the newest checkpoint; None: there is none.
        loss: of the last step, in nats; a tensor lies on the device. None: no step was taken.
        monitored: what the monitor measured after the last step; None: nothing.
        unmonitored: the numbers of the last step while its monitor has not measured yet, in case a
            signal stops it; else {}.
        views: of the next step, if they were prepared while the last one ran.
        network: maps views to the outputs of the model's heads, compiled; None: the model does it.
        views_of: of data/views.py, compiled; None: as it is.
        features: of views of the training images, on which the heads alone are trained; None: the
            encoder is trained, or its features have not been computed yet.
    """

    config: PretrainConfig
    images: ImageSet
    model: SimCLR
    objective: Objective
    optimizer: torch.optim.Optimizer
    precision: torch.dtype
    ahead: bool = False
    done: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    saved_step: int | None = None
    loss: Tensor | float | None = None
    monitored: Monitored | None = None
    unmonitored: dict[str, float] = field(default_factory=dict)
    views: StepViews | None = None
    network: accumulate.Network | None = None
    views_of: ViewsOf | None = None
    features: FeatureViews | None = None

    def __post_init__(self) -> None:
        """Take the features of images that a table names."""
        self.features = self.features or FeatureViews.of(self.images)

    @property
    def heads_only(self) -> bool:
        """Return whether the encoder is frozen, so that checkpoints hold the heads without it."""
        return self.config.freeze == "backbone"

    @property
    def nulls(self) -> int:
        """Return the number of null views of a step."""
        if self.features is not None and self.features.nulls is None:
            return 0
        return self.config.nulls

    @property
    def per_epoch(self) -> int:
        """Return the number of steps of an epoch."""
        return steps_per_epoch(len(self.images), self.config.batch_size)

    @property
    def steps(self) -> int:
        """Return the number of steps of the whole run."""
        return self.per_epoch * self.config.all_epochs

    @cached_property
    def parts(self) -> list[TrainingPart]:
        """The parts of the training, see `PretrainConfig.parts`."""
        return self.config.parts

    @property
    def ends(self) -> list[int]:
        """Return the steps after which a planned part of the run is complete; the last is all."""
        extensions = (part.epochs for part in self.config.extensions)
        return [
            self.per_epoch * epochs
            for epochs in running_sums(extensions, initial=self.config.epochs)
        ]

    def step(self) -> tuple[Tensor, Posterior]:
        """Take one step of the optimizer over `config.batch_size` images, and wait for nothing.

        Returns:
            The loss in nats, a mean over the views, and the posteriors of the batch's 2n views and
            of its null views behind them; on the model's device. Where the program is `ahead`, the
            loss may be NaN or infinite; a fused optimizer has then left the weights as they were.

        Raises:
            UserError: the program is not `ahead`, and the loss is not finite.
        """
        set_learning_rate(self.optimizer, self.rate())
        self.optimizer.zero_grad(set_to_none=True)
        try:
            loss, posterior = self.gradient()
        except OutOfRange:  # what the network put out is NaN or infinite, and so the loss would be
            raise self.diverged(f"the loss is {math.nan}") from None
        if not self.ahead and not math.isfinite(loss):
            raise self.diverged(f"the loss is {float(loss)}")
        if all(group.get("fused") for group in self.optimizer.param_groups):
            # torch's fused kernels do nothing where this is 1
            self.optimizer.found_inf = (~loss.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.done += 1
        self.loss, self.monitored = loss, None
        if self.ahead and self.done < self.steps:
            self.views = self._views()
        return loss, posterior

    def gradient(self) -> tuple[Tensor, Posterior]:
        """Add the gradient of the next step's loss to the gradients of the parameters.

        Returns:
            The loss and the posteriors of the views and null views, detached.
        """
        views, self.views = self.views, None
        if views is None or views.done != self.done:
            views = self._views()
        return accumulate.backward(
            self.model,
            self.objective,
            views.of,
            self.config.batch_size,
            self.config.micro_batch,
            self._generator(),
            self.precision,
            self.model.heads if self.features is not None else self.network,
            nulls=self.nulls,
        )

    def _views(self) -> StepViews:
        """Prepare the views of the next step, or their features."""
        if self.features is not None:
            return prepared_features(self.config, self.features, self.done, self.model.device)
        return prepared_views(self.config, self.images, self.done, self.model.device, self.views_of)

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        done, (part, *later) = self.done, self.parts
        while later and done >= part.epochs * self.per_epoch:
            done, part = done - part.epochs * self.per_epoch, later.pop(0)
        constant = part.schedule == "constant"
        steps, warmup = part.epochs * self.per_epoch, round(part.warmup_epochs * self.per_epoch)
        if not constant:  # a constant rate must not depend on the number of steps
            warmup = min(warmup, steps // 2)
        return learning_rate(done, steps, warmup, part.learning_rate, constant=constant)

    def is_due(self, every: int) -> bool:
        """Return whether something that is done every so many epochs is due after the last step.

        It is also due at the end of each part of the run; `every` = 0 means never.
        """
        epoch, rest = divmod(self.done, self.per_epoch)
        return bool(every) and rest == 0 and (epoch % every == 0 or self.done in self.ends)

    def checkpoint_bytes(self) -> int:
        """Return about how many bytes a checkpoint of this network has."""
        tensors = self._saved().values()
        copies = 3 if self.config.optimizer == "adam" else 2  # with the optimizer's moments
        return copies * sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def checkpoints_at_once(self) -> int:
        """Return how many checkpoints of a new run will lie in its folder at one moment.

        They are the newest two, the best one if there are labels to find it by, and the draft of
        the next; in a short run fewer.
        """
        labelled = bool((self.images.labels >= 0).any())
        monitored = self.config.monitor_every if labelled else 0
        every = [self.config.checkpoint_every, monitored]
        written = sum(math.ceil(self.config.all_epochs / number) for number in every if number)
        return min(max(written, 1), KEPT_CHECKPOINTS + 1 + (monitored > 0))

    def check_weights(self) -> None:
        """Raise a `UserError` if a tensor of the state is not finite; it names the tensor.

        Call it before the monitor and before a checkpoint: a loss can be finite when its gradient
        is not. A moment of the optimizer that is infinite keeps its weight where it is for ever.
        """
        named: dict[str, Any] = {
            f"{name} of the {owner}": tensor
            for owner, module in (("network", self.model), ("loss", self.objective))
            for name, tensor in module.state_dict(keep_vars=True).items()
            if not (self.heads_only and self.done and name.startswith(BACKBONE))
        }
        names = {id(tensor): name for name, tensor in named.items()}
        for parameter, entry in self.optimizer.state.items():
            of = names.get(id(parameter), "a parameter")
            named |= {f"the optimizer's {key} for {of}": value for key, value in entry.items()}
        for name, value in named.items():
            if isinstance(value, Tensor | float) and not torch.as_tensor(value).isfinite().all():
                raise self.diverged(f"{name} is not finite")

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return the parts and the numbers of a checkpoint."""
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
            **self.record,
        }
        # Those before accepted changes stay: with other images an epoch had other steps
        recorded = self.record.get("ends")
        ends = {step for step in self.ends[:-1] if step <= self.done}
        ends |= {x for x in recorded if type(x) is int} if isinstance(recorded, list) else set()
        if ends:
            numbers["ends"] = sorted(ends)
        if self.loss is not None:
            numbers["loss"] = float(self.loss)
        if self.monitored is not None:
            numbers["monitor"] = asdict(self.monitored)
        if self.unmonitored:
            numbers["unmonitored"] = self.unmonitored
        parts = {
            "model": self._saved(),
            "objective": self.objective.state_dict(),
            "optimizer": tensors,
        }
        return parts, numbers

    def _saved(self) -> dict[str, Tensor]:
        """Return the model's state without a frozen backbone, which initial.safetensors holds."""
        state = self.model.state_dict()
        if not self.heads_only:
            return state
        return {k: value for k, value in state.items() if not k.startswith(BACKBONE)}

    def restore(self, parts: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
        """Continue from a checkpoint of `state`; a frozen backbone has its weights already."""
        own = self.model.state_dict() if self.heads_only else {}
        frozen = {name: value for name, value in own.items() if name.startswith(BACKBONE)}
        self.model.load_state_dict(frozen | parts["model"])
        self.objective.load_state_dict(parts["objective"])
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self.done = self.saved_step = numbers["step"]
        self.record = {key: numbers[key] for key in RECORDED if key in numbers}
        self.loss = numbers.get("loss")
        self.monitored = as_monitored(numbers.get("monitor"))
        self.unmonitored = numbers.get("unmonitored", {})

    def _generator(self) -> torch.Generator:
        """Return a generator for losses that sample.

        It depends on seed and step alone, so that a resumed run draws the same numbers.
        """
        generator = torch.Generator(self.model.device)
        return generator.manual_seed(self.config.seed * 1_000_003 + self.done)

    def diverged(self, sign: str, done: int | None = None) -> UserError:
        """Return the error that ends a run, with what is saved of it.

        Args:
            sign: what is not finite, a sentence without a full stop.
            done: number of steps before it; None: all that were taken.
        """
        done = self.done if done is None else done
        if done == 0:
            return UserError(
                f"{sign} before the first step, so training cannot begin; check the images, the"
                " encoder and the loss."
            )
        kept = (
            "There is no checkpoint yet, so start the run anew with overwrite=True."
            if self.saved_step is None
            else f"The last checkpoint is from step {self.saved_step}, before this happened; go on"
            " from it with resume=True, accept_changes=True and what you changed."
        )
        return UserError(
            f"{sign} at step {done}, so training has diverged; lower learning_rate (now"
            f" {self.config.learning_rate}) or raise temperature. {kept}"
        )
