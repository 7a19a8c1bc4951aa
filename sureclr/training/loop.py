"""The loop around the step of `trainer.Trainer`: lines, monitor, checkpoints and signals."""

from contextlib import ExitStack
from pathlib import Path

from sureclr.data.sources import paths_from, where_now
from sureclr.errors import UserError
from sureclr.files import OF_SPACE, WriteError
from sureclr.models.devices import embedding_precision
from sureclr.progress import Progress
from sureclr.stopping import StopFlag, Stopped, stop_on_signals
from sureclr.training.feature_cache import computed_features
from sureclr.training.monitor import (
    KNN_WORDS,
    BestSoFar,
    Monitor,
    collapse_warning,
    monitor_text,
)
from sureclr.training.records import (
    StepLines,
    begin_run,
    resume_run,
    save_snapshot,
    write_encoder,
)
from sureclr.training.run_dir import Monitored, RunDir
from sureclr.training.track import Tracker, open_tracker
from sureclr.training.trainer import Trainer


def run_training(
    trainer: Trainer,
    directory: RunDir,
    progress: Progress,
    *,
    resume: bool,
    track: str | None,
    accept_changes: bool = False,
    monitor_labels: Path | None = None,
) -> None:
    """Take all steps that a run still has to take, and write its folder.

    Args:
        trainer: at step 0.
        directory: prepared for writing.
        progress: gets the number of steps done with their numbers, and messages.
        resume: whether to continue the run that the folder holds.
        track: tensorboard, wandb or None.
        accept_changes: whether a resumed run may have another configuration or other images.
        monitor_labels: the file of labels that the monitor uses, for images.json.

    Raises:
        UserError: training diverged, the run to resume has another configuration or other images,
            another process is writing to the folder, or its disk is full.
        Stopped: SIGINT or SIGTERM, after a checkpoint.
    """
    with ExitStack() as stack:
        stack.enter_context(directory.lock())
        stack.enter_context(stop_on_signals(_begun(directory)))
        coming = 1 if resume else trainer.checkpoints_at_once()
        directory.check_space(trainer.checkpoint_bytes(), coming)
        if resume:
            resume_run(directory, trainer, progress, accept_changes=accept_changes)
        else:
            begin_run(directory, trainer)
        if (report := trainer.images.report) is not None:
            where = where_now(trainer.images.name, directory.path, directory.image_paths())
            named = {"from_run": paths_from(directory.path, where)}
            labels = {} if monitor_labels is None else {"monitor_labels": str(monitor_labels)}
            directory.save_image_report({**report.to_json(), **named, **labels})
        tracker = stack.enter_context(open_tracker(track, directory.path / "track", trainer.config))
        precision = embedding_precision(trainer.config.precision, trainer.model.device)
        if trainer.heads_only and trainer.features is None and _goes_on(trainer):
            trainer.features = computed_features(
                directory.features,
                trainer.config,
                trainer.images,
                trainer.model,
                precision,
                digests={name: trainer.record[name] for name in ("backbone", "images")},
                stopped=f"the features that are done stay; {_how_to_go_on(directory)}",
                progress=progress,
            )
        monitor = Monitor.of(trainer.images, trainer.config.seed, precision, trainer.features)
        progress.begin("Training", trainer.steps, trainer.done)
        try:
            with stop_on_signals() as stop:  # of these, the state is saved first
                _take_steps(trainer, directory, monitor, stop, progress, tracker)
                write_encoder(directory, trainer)
                stop.check(f"the run in {directory.path} is complete")
        except WriteError as error:
            raise _not_written(error, trainer, directory) from error
        finally:
            progress.finish()


def _goes_on(trainer: Trainer) -> bool:
    """Return whether a step or a measurement is left to do.

    A run that was stopped while its monitor measured goes on there.
    """
    return trainer.done < trainer.steps or bool(trainer.unmonitored)


def _how_to_go_on(directory: RunDir) -> str:
    return f"continue with resume=True, out={str(directory.path)!r}"


def _begun(directory: RunDir) -> str:
    """Return how to go on with a run that a signal stops before its next step."""
    return f"nothing new was computed; {_how_to_go_on(directory)}"


def _not_written(error: WriteError, trainer: Trainer, directory: RunDir) -> UserError:
    """Return a sentence that says what is kept, and how to go on."""
    kept = "nothing is" if trainer.saved_step is None else f"step {trainer.saved_step} is"
    remedy = "make room there" if error.errno in OF_SPACE else "bring its drive back"
    return UserError(
        f"{error.failure}; of the weights, {kept} saved: {remedy}, and continue with"
        f" resume=True, out={str(directory.path)!r}"
    )


def _take_steps(
    trainer: Trainer,
    directory: RunDir,
    monitor: Monitor,
    stop: StopFlag,
    progress: Progress,
    tracker: Tracker,
) -> None:
    """Take the remaining steps, with a line for each and checkpoints when they are due."""
    saved = _how_to_go_on(directory)
    data = monitor.data(trainer.record["images"])
    name = monitor.accuracy
    best = BestSoFar.of(directory, trainer.per_epoch, data, name)
    pending = StepLines(trainer, _untrained_knn(trainer, directory, monitor))

    def write(numbers: dict[str, float]) -> None:
        directory.log(numbers)
        tracker(numbers)
        progress.update(int(numbers["step"]), numbers)

    while _goes_on(trainer):
        numbers = trainer.unmonitored
        if not numbers:
            if not (pending.step() or stop or _anything_due(trainer)):
                continue
            for numbers in pending.read():
                if numbers["step"] < trainer.done:
                    write(numbers)
        is_best = False
        if trainer.done % trainer.per_epoch == 0:
            trainer.unmonitored = numbers
            try:
                with stop_on_signals(saved):  # it may take minutes
                    numbers = numbers | _monitored(trainer, directory, monitor, progress)
            except Stopped:
                _save(trainer, directory)
                raise
            trainer.unmonitored = {}
            if name in numbers:
                trainer.monitored = Monitored(numbers[name], len(monitor.queries), data)
                is_best = best.takes(trainer.monitored, trainer.done)
        write(numbers)  # before the checkpoint: a crash between the two loses no line
        complete = trainer.done == trainer.steps
        if name in numbers and (warning := best.warning(numbers[name], complete)):
            progress.message(warning)
        if complete:
            _report_gain(trainer, directory, numbers, name, progress)
        at_end = trainer.done in trainer.ends
        if stop or at_end or is_best or trainer.is_due(trainer.config.checkpoint_every):
            _save(trainer, directory)
        stop.check(saved)


def _anything_due(trainer: Trainer) -> bool:
    """Return whether more than a line follows the last step."""
    config = trainer.config
    every = config.monitor_every, config.snapshot_every, config.checkpoint_every
    return trainer.done in trainer.ends or any(map(trainer.is_due, every))


def _save(trainer: Trainer, directory: RunDir) -> None:
    """Write a checkpoint, if every value in it is finite."""
    trainer.check_weights()
    directory.save_checkpoint(trainer.done, *trainer.state())
    trainer.saved_step = trainer.done


def _untrained_knn(trainer: Trainer, directory: RunDir, monitor: Monitor) -> dict[str, float]:
    """Return the kNN accuracy before the first step of a run, if the monitor measures."""
    if trainer.done > 0 or not trainer.config.monitor_every:
        return {}
    try:
        with stop_on_signals(_begun(directory)):
            return monitor.knn_untrained(trainer.model)
    except FloatingPointError as error:
        raise trainer.diverged(str(error)) from error


def _monitored(
    trainer: Trainer, directory: RunDir, monitor: Monitor, progress: Progress
) -> dict[str, float]:
    """Return the monitor's numbers after an epoch and save a snapshot, if they are due."""
    config, epoch = trainer.config, trainer.done // trainer.per_epoch
    if not (trainer.is_due(config.monitor_every) or trainer.is_due(config.snapshot_every)):
        return {}
    trainer.check_weights()
    try:
        numbers, tensors = monitor.measure(trainer.model, config.views)
    except FloatingPointError as error:
        raise trainer.diverged(str(error)) from error
    progress.message(monitor_text(epoch, numbers))
    if warning := collapse_warning(numbers):
        progress.message(warning)
    if trainer.is_due(config.snapshot_every):
        path = directory.snapshots / f"epoch-{epoch:05d}.safetensors"
        about = {"epoch": epoch, "origin": trainer.record["origins"][-1], **numbers}
        save_snapshot(path, tensors, about)
        others = [one for one in trainer.record.get("snapshots", []) if one != epoch]
        trainer.record["snapshots"] = [*others, epoch]
    return numbers


def _report_gain(
    trainer: Trainer, directory: RunDir, numbers: dict[str, float], name: str, progress: Progress
) -> None:
    """Compare kNN at the end of training with that before, if both were measured."""
    first = next(iter(directory.lines()), {})
    before = first.get(f"{name}_untrained")
    if before is None or name not in numbers:
        return
    compared = f"{trainer.config.first_encoder_name} {before:.3f}"
    if name != "knn":  # the encoder is frozen
        compared = f"untrained heads {before:.3f}"
        if (features := first.get("knn_untrained")) is not None:
            compared += f"; features of the {trainer.config.first_encoder_name} {features:.3f}"
    progress.message(
        f"{KNN_WORDS[name]} on held-out training images {numbers[name]:.3f} ({compared})"
    )
