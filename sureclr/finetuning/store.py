"""The fine-tuned classifier in the run folder: finetuned/NAME.json says what it is and names its
weights, by their sha256.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sureclr.data.user_images import as_image_set
from sureclr.errors import UserError, unknown
from sureclr.files import digest_of_bytes, json_bytes, remove, write_atomically
from sureclr.finetuning.train import AT_ONCE, Classifier
from sureclr.models.embedding import as_float, evaluating
from sureclr.models.encoders import encoder
from sureclr.training.devices import choose_device
from sureclr.training.run import Run


@dataclass(frozen=True)
class Finetuned:
    """A classifier with what is needed to use it.

    Attributes:
        model: in evaluation mode, on the chosen device. classes: names of its outputs, in order.
        size, channels: of the images it takes. about: all that its JSON says.
    """

    model: Classifier
    classes: tuple[str, ...]
    size: int
    channels: int
    about: dict[str, Any]

    def probabilities(self, images: Any) -> Tensor:
        """(n, classes) of these images (ImageSet, uint8 array or PIL images), on the CPU."""
        pixels = as_image_set(images, size=self.size, channels=self.channels).images
        with evaluating(self.model):
            parts = [
                self.model(as_float(part.to(self.model.device))).float().softmax(1).cpu()
                for part in pixels.split(AT_ONCE)
            ]
        return torch.cat(parts)


def save_finetuned(
    run: Run, key: str, model: Classifier, classes: tuple[str, ...], entry: dict[str, Any]
) -> dict[str, Any]:
    """Write weights under a name that holds their hash, then the JSON that names them, then remove
    older weights of this name: at every moment the JSON names a whole file.
    """
    from safetensors.torch import save

    folder, name = run.path / "finetuned", file_name(key)
    folder.mkdir(exist_ok=True)
    data = save(
        {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    )
    digest = digest_of_bytes(data)
    file = f"{name}-{digest[:12]}.safetensors"
    about = {
        "key": key,
        "file": file,
        "sha256": digest,
        "classes": list(classes),
        "encoder": run.config.encoder,
        "stem": run.config.stem,
        "channels": run.channels,
        "size": run.size,
        "seed": entry["seed"],
        "fold": entry["fold"],
        "n_labels": entry["n_labels"],
        **{name: entry["finetune"][name] for name in ("lr", "epoch", "validation", "accuracy")},
    }
    write_atomically(folder / file, data)
    write_atomically(folder / f"{name}.json", json_bytes(about))
    for old in folder.glob(f"{glob_safe(name)}-{'[0-9a-f]' * 12}.safetensors"):
        if old.name != file:
            remove(old)
    return {"file": f"finetuned/{file}", "sha256": digest, "seed": entry["seed"]}


def file_name(key: str) -> str:
    """Of a key of results.json: finetune:10%:stl10 -> 10%-stl10. Two keys that differ in odd
    characters alone get a hash.
    """
    words = key.removeprefix("finetune:")
    plain = re.sub(r"[^\w.%-]+", "-", words)
    return (
        plain
        if plain == words.replace(":", "-")
        else f"{plain}-{digest_of_bytes(words.encode())[:6]}"
    )


def glob_safe(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def load_finetuned(run: str | Path, labels: str = "10%", device: str = "auto") -> Finetuned:
    """The classifier that `sureclr finetune RUN --labels LABELS` kept.

    Args:
        labels: what follows `finetune:` in results.json: 10%, 500, 100%:fold-3, 10%:stl10, or a
            label file's path.

    Raises:
        UserError: no such classifier, or a damaged one.
    """
    folder = Path(run) / "finetuned"
    path = folder / f"{file_name(labels)}.json"
    if not path.is_file():
        there = [file.stem for file in sorted(folder.glob("*.json"))]
        raise (
            unknown("fine-tuned classifier", labels, there)
            if there
            else UserError(
                f"{run} holds no fine-tuned classifier; make one with sureclr finetune {run}"
                f" --labels {labels}."
            )
        )
    about, data = _read(folder, path)
    from safetensors.torch import load

    weights, chosen = load(data), choose_device(device)
    network = encoder(about["encoder"], about["stem"], about["channels"])
    model = Classifier(network, len(about["classes"]), weights["mean"], weights["std"])
    model.load_state_dict(weights)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as it was trained: the same last bits
    return Finetuned(
        model.to(chosen).eval(), tuple(about["classes"]), about["size"], about["channels"], about
    )


def _read(folder: Path, path: Path) -> tuple[dict[str, Any], bytes]:
    """The JSON and the bytes of the weights that it names, if they are those."""
    try:
        about = json.loads(path.read_bytes())
        data = (folder / Path(about["file"]).name).read_bytes()
        whole = digest_of_bytes(data) == about["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} or its weights cannot be read ({error}); fine-tune again."
        ) from error
    if not whole:
        raise UserError(
            f"{folder / about['file']} is damaged (it does not match its sha256); fine-tune again."
        )
    return about, data
