"""The best fine-tuned classifier, saved in the run folder.

finetuned/NAME.json describes a classifier and names the file of its weights with their sha256. The
weights are written under a new name before the JSON names them, so that at every moment the JSON
names a whole file.
"""

import hashlib
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError, unknown
from sureclr.files import (
    json_bytes,
    make_folder,
    read_json,
    read_safetensors,
    remove,
    sealed,
    write_atomically,
)
from sureclr.finetuning.results import ClassifierRecord, SavedWeights, SeedResult
from sureclr.finetuning.train import EVALUATION_BATCH, Classifier
from sureclr.models.devices import choose_device
from sureclr.models.embedding import as_float, evaluating
from sureclr.models.encoders import ENCODERS, encoder
from sureclr.models.simclr import StandardisedEncoder
from sureclr.training.building import is_own, own_network
from sureclr.training.run import Run, results_folder_of
from sureclr.training.run_dir import RunDir


@dataclass(frozen=True, eq=False, repr=False)
class Finetuned:
    """A fine-tuned classifier, ready for use.

    Attributes:
        model: in evaluation mode, on the chosen device.
        record: what is known of it: classes, image size, accuracy and more.
    """

    model: Classifier
    record: ClassifierRecord

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of `probabilities`."""
        return self.record.classes

    def probabilities(self, images: Any) -> Tensor:
        """Return the probability of each class, (n, classes), on the CPU; each row adds up to 1.

        Args:
            images: an ImageSet, a uint8 array (n, c, h, w) or (n, h, w), or a list of PIL images.
                They are brought to the size and the channels of the classifier.
        """
        pixels = as_image_set(images, options=self.record.read_options).images
        with evaluating(self.model):
            parts = [
                self.model(as_float(part.to(self.model.device))).float().softmax(1).cpu()
                for part in pixels.split(EVALUATION_BATCH)
            ]
        return torch.cat(parts)

    def __repr__(self) -> str:
        """Return one line."""
        record = self.record
        tested = "not tested" if record.accuracy is None else f"test accuracy {record.accuracy:.4f}"
        return (
            f"<Finetuned {record.key.removeprefix('finetune:')}: {record.encoder},"
            f" {len(record.classes)} classes, {record.n_labels:,} labels, {tested}>"
        )


def save_finetuned(
    run: Run,
    key: str,
    model: Classifier,
    classes: tuple[str, ...],
    seed: SeedResult,
    digests: tuple[str, str],
) -> SavedWeights:
    """Save a classifier in the run folder, in place of an older one with this key.

    Args:
        run: whose encoder was fine-tuned; the caller holds its lock.
        key: of the result in results.json.
        model: to be saved.
        classes: names of its outputs.
        seed: the repetition that the model is of.
        digests: of the images and of the labels that it was made of.
    """
    from safetensors.torch import save

    folder, name = run.results_folder / "finetuned", file_name(key)
    make_folder(folder)
    tensors = model.state_dict().items()
    data = save({tensor: values.detach().cpu().contiguous() for tensor, values in tensors})
    digest = hashlib.sha256(data).hexdigest()
    record = ClassifierRecord(
        key=key,
        file=f"{name}-{digest[:12]}.safetensors",
        weights_sha256=digest,
        classes=classes,
        encoder=run.config.encoder,
        stem=run.config.stem,
        channels=run.channels,
        size=run.size,
        seed=seed.seed,
        fold=seed.fold,
        n_labels=seed.n_labels,
        learning_rate=seed.finetune.learning_rate,
        epoch=seed.finetune.epoch,
        validation=seed.finetune.validation,
        accuracy=seed.finetune.accuracy,
        checkpoint=run.checkpoint,
        images=digests[0],
        labels=digests[1],
        centre_share=run.config.read_options.centre_share,
        interpolation=run.config.read_options.interpolation,
        pool=run.config.pool,
    )
    write_atomically(folder / record.file, data)
    write_atomically(folder / f"{name}.json", json_bytes(sealed(record)))
    for old in folder.glob(f"{name}-{'[0-9a-f]' * 12}.safetensors"):
        if old.name != record.file:
            remove(old)
    return SavedWeights(f"finetuned/{record.file}", digest, seed.seed)


def file_name(key: str) -> str:
    """Return the name of the files of a result, which is also what `load_finetuned` takes.

    Characters that file systems may refuse, or that have a meaning in patterns, become hyphens; a
    hash then tells keys apart that differ in these alone.

    >>> file_name("finetune:10%:stl10")
    '10%-stl10'
    """
    words = key.removeprefix("finetune:")
    plain = re.sub(r"[^\w.%-]+", "-", words)
    if plain == words.replace(":", "-"):
        return plain
    return f"{plain}-{hashlib.sha256(words.encode()).hexdigest()[:6]}"


def load_finetuned(
    run: str | Path,
    labels: str = "10%",
    device: str = "auto",
    *,
    network: nn.Module | None = None,
    checkpoint: str | int = "last",
) -> Finetuned:
    """Load the classifier that a fine-tuning has saved in the run folder.

    Args:
        run: the run folder, or the folder that was given to `sureclr.finetune` as `out`.
        labels: the labels it was trained on, as `results.json` has them after `finetune:`: "10%",
            "500", "100%:fold-3", "10%:stl10", or the path of a label file.
        device: auto, cuda, mps or cpu.
        network: the encoder, with any weights, where the run was trained with one of your own.
        checkpoint: which was fine-tuned: "last", "best" or a number of steps.

    Raises:
        UserError: there is no such checkpoint or classifier, its files are damaged, or it was made
            of another checkpoint.
    """
    folder = results_folder_of(run, checkpoint) / "finetuned"
    path = folder / f"{file_name(labels)}.json"
    if not os.path.lexists(path):
        raise _no_such_classifier(run, labels, folder)
    from safetensors import SafetensorError
    from safetensors.torch import load

    record = _read_record(path)
    directory = RunDir(Path(run))
    digest = directory.checkpoint_digest(str(checkpoint)) if directory.is_run() else None
    if record.checkpoint and digest is not None and record.checkpoint != digest:
        raise UserError(
            f"the fine-tuned classifier {path} was made of another checkpoint of the run than the"
            f" {'newest undamaged' if checkpoint == 'last' else 'chosen'} one; fine-tune the run"
            " again."
        )
    data = _read_weights(folder, record)
    try:
        weights = load(data)
        if network is None and (record.encoder not in ENCODERS or record.encoder == "small"):
            with torch.device("meta"), warnings.catch_warnings():  # shapes alone take no memory
                warnings.simplefilter("ignore")  # that loading copies no values
                empty = {name: value.to("meta") for name, value in weights.items()}
                shapes = Classifier(_encoder(record, None, empty), len(record.classes))
                shapes.load_state_dict(empty)
        model = Classifier(_encoder(record, network, weights), len(record.classes))
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path} does not describe the weights in {record.file}; fine-tune the run again."
        ) from error
    # channels_last as in training, so that the last bits of the outputs are the same
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return Finetuned(model.to(choose_device(device)).eval(), record)


def _encoder(
    record: ClassifierRecord, network: nn.Module | None, weights: dict[str, Tensor]
) -> StandardisedEncoder:
    """Return the encoder of a saved classifier, whose weights are not loaded yet."""
    if is_own(record.encoder) and network is None:
        raise UserError(
            f"the encoder {record.encoder} is an object of your own, and the run stores its weights"
            " but not its code; pass it again, as the argument `network`."
        )
    if network is None:
        network = encoder(record.encoder, record.stem, record.channels, pool=record.pool)
    else:
        network = own_network(network, (record.channels, record.size, record.size))
    return StandardisedEncoder(network, weights["encoder.mean"], weights["encoder.std"])


def _no_such_classifier(run: str | Path, labels: str, folder: Path) -> UserError:
    saved = [file.stem for file in sorted(folder.glob("*.json"))]
    if saved:
        return unknown("fine-tuned classifier", labels, saved)
    return UserError(
        f"{run} has no fine-tuned classifier; fine-tune it first, with `sureclr finetune {run}`."
    )


def _read_record(path: Path) -> ClassifierRecord:
    try:
        record = ClassifierRecord.of(read_json(path))
        if file_name(record.key) != path.stem:
            raise ValueError(f"it is of {record.key!r:.60}, which is not what its name says")
        return record
    except (OSError, ValueError) as error:  # a SchemaError is a ValueError
        raise UserError(f"{path} cannot be read ({error}); fine-tune the run again.") from error


def _read_weights(folder: Path, record: ClassifierRecord) -> bytes:
    """Return the content of the file of the weights, after a check of its sha256."""
    path = folder / Path(record.file).name  # a name with folders in it must not lead elsewhere
    try:
        data = read_safetensors(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}); fine-tune the run again.") from error
    if hashlib.sha256(data).hexdigest() != record.weights_sha256:
        raise UserError(
            f"{path} is damaged (it does not match its sha256); fine-tune the run again."
        )
    return data
