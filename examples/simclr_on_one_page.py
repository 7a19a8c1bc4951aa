"""SimCLR and SURE on one page: the whole method, in a training loop of your own.

python examples/simclr_on_one_page.py          # digits, about a minute on a CPU
"""

import argparse
from typing import cast

import torch
from torch import Tensor, nn

from sureclr import SureLoss, ViewConfig, load_images, two_views
from sureclr.data.batches import batch, steps_per_epoch
from sureclr.evaluation.probes import linear_probe
from sureclr.models.encoders import encoder
from sureclr.models.simclr import CertaintyHead, ProjectionHead


def train(
    images: Tensor, epochs: int, batch_size: int = 250, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """Train an encoder and a certainty head on uint8 images (n, c, h, w), without labels."""
    torch.manual_seed(seed)
    f = encoder("small", stem="cifar", channels=images.shape[1])  # features h = f(x)
    width = cast(int, f.num_features)
    g = ProjectionHead(width, outputs=128)  # g(h): its direction is what a view shows
    certainty = CertaintyHead(width)  # k: the radius sigmoid(k) is how sure a view is
    loss_of = SureLoss()  # NT-Xent and the radius's likelihood; NTXentLoss() is SimCLR alone
    parameters = nn.ModuleList([f, g, certainty]).parameters()
    optimizer = torch.optim.Adam(parameters, lr=2e-3, weight_decay=1e-6)
    config = ViewConfig(flip=0.0, crop_area=(0.25, 1.0))  # a mirrored digit is another digit

    for epoch in range(epochs):
        for step in range(steps_per_epoch(len(images), batch_size)):
            indices, seeds = batch(seed, epoch, step, len(images), batch_size)
            # (2n, c, h, w); rows i and i + n are the views of image i
            views = two_views(images[indices], seeds, config)
            h = f(views)
            k = certainty(h)
            loss = loss_of(g(h), k)  # nats, the mean over all 2n views
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        radius = torch.sigmoid(k).mean()
        print(f"epoch {epoch + 1}  loss {loss.item():.3f}  mean radius {radius:.3f}")
    return f.eval(), certainty.eval()


def evaluate(f: nn.Module, certainty: nn.Module, epochs: int) -> float:
    """Print and return the linear accuracy; print the digits that the model is least sure of."""
    data = load_images("digits")
    with torch.no_grad():
        features = [f(part.images.float() / 255) for part in (data.train, data.test)]
        radius = torch.sigmoid(certainty(features[1]))
    accuracy = linear_probe(features[0], data.train.labels, features[1], data.test.labels).accuracy
    unsure = [data.classes[label] for label in data.test.labels[radius.argsort()[:10]]]
    print(
        f"linear accuracy on {len(data.test)} test digits after {epochs} epochs: {accuracy:.3f};"
        f" least certain: {' '.join(unsure)}"
    )
    return accuracy


def main(arguments: list[str] | None = None) -> float:
    """Train and evaluate; return the linear accuracy."""
    parser = argparse.ArgumentParser(description="SimCLR and SURE on one page")
    parser.add_argument("--epochs", type=int, default=30)
    epochs = parser.parse_args(arguments).epochs
    encoder_and_head = train(load_images("digits").train.images, epochs)
    return evaluate(*encoder_and_head, epochs)


if __name__ == "__main__":
    main()
