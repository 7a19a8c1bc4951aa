"""SimCLR and SURE on one page: the whole method, with the package's own functions, in a training
loop of your own.

python examples/simclr_on_one_page.py          # digits, about a minute on a CPU
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sureclr import SureLoss, ViewConfig, load_images, two_views
from sureclr.data.batches import batch, steps_per_epoch
from sureclr.evaluation.probes import linear_probe
from sureclr.models.encoders import encoder
from sureclr.models.simclr import CertaintyHead, ProjectionHead


def train(
    images: Tensor, epochs: int, batch_size: int = 250, seed: int = 0
) -> tuple[nn.Module, nn.Module]:
    """An encoder f and a certainty head from uint8 images (n, c, h, w), without labels."""
    torch.manual_seed(seed)
    f = encoder("small", stem="cifar", channels=images.shape[1])  # features h = f(x)
    g = ProjectionHead(
        f.num_features, outputs=128
    )  # direction mu = g(h) / |g(h)|: what the view shows
    how_sure = CertaintyHead(f.num_features)  # k, radius rho = sigmoid(k): how sure the view is
    loss_of = SureLoss(
        temperature=0.2
    )  # NT-Xent + the likelihood of the partner's direction; NTXentLoss for SimCLR alone
    optimizer = torch.optim.Adam(
        nn.ModuleList([f, g, how_sure]).parameters(), lr=2e-3, weight_decay=1e-6
    )
    config = ViewConfig(flip=0.0, crop_area=(0.25, 1.0))  # a mirrored digit is another digit

    for epoch in range(epochs):
        for step in range(steps_per_epoch(len(images), batch_size)):
            indices, seeds = batch(seed, epoch, step, len(images), batch_size)
            views = two_views(
                images[indices], seeds, config
            )  # (2n, c, h, w); rows i and i + n are the views of image i
            h = f(views)
            posterior = loss_of.read(F.normalize(g(h), dim=1), how_sure(h))
            loss = loss_of(posterior)  # nats, a mean over all 2n views
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(
            f"epoch {epoch + 1}  loss {loss.item():.3f}  mean radius {posterior.radius.mean():.3f}"
        )
    return f.eval(), how_sure.eval()


def evaluate(f: nn.Module, how_sure: nn.Module, epochs: int) -> float:
    """Linear accuracy on the test digits; prints it, and which digits the model is least sure of."""
    data = load_images("digits")
    with torch.no_grad():
        features = [f(part.images.float() / 255) for part in (data.train, data.test)]
        radius = torch.sigmoid(how_sure(features[1]))
    accuracy = linear_probe(features[0], data.train.labels, features[1], data.test.labels).accuracy
    unsure = [data.classes[label] for label in data.test.labels[radius.argsort()[:10]]]
    print(
        f"linear accuracy on {len(data.test)} test digits after {epochs} epochs: {accuracy:.3f};"
        f" least certain: {' '.join(unsure)}"
    )
    return accuracy


def main(words: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description="SimCLR and SURE on one page")
    parser.add_argument("--epochs", type=int, default=30)
    epochs = parser.parse_args(words).epochs
    encoder_and_head = train(load_images("digits").train.images, epochs)
    return evaluate(*encoder_and_head, epochs)


if __name__ == "__main__":
    main()
