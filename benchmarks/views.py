"""The speed of SimCLR's two views, ours against torchvision's: `python -m benchmarks.views`.

Every route draws views by the same distributions from the same noise images, from uint8 in memory
to float32 in [0, 1]; tests/data/test_views.py checks that the operations are equal at equal
parameters. One process with one thread runs the routes in turn. The numbers are views per second of
CPU time, medians over the rounds without the first one. The floor is the conversion from uint8 to
float32 alone. kornia and lightly take part if they are installed.

With `--photographs` the images are scikit-learn's two photographs of 640 x 427 pixels instead, the
views have 96 pixels, and ours are cropped from the photographs, from copies that a folder's cache
holds (shorter side 192 pixels), and, as before, from centre squares of 96 pixels. Beside
the speed it prints how sharp crops alone are, relative to those of torchvision from PIL pictures:
the mean squared Laplacian and the mean squared gradient, each with its standard error.

With `--device cuda` (or `cpu`) it compares the ways to make ours on that device: operator by
operator on all images together, as on an accelerator; the same compiled by inductor; and on a CPU
also image rows by operation, which is what a CPU does. It prints how many operators the device is
asked for and how many kernels the compiler made, and stops if a way differs from the CPU's views by
more than 1e-5. Times are of the wall clock on an accelerator, after it has finished, and of the
process on a CPU. Drawing the parameters and sending them is not part of a way; it has its own line.
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sureclr.compat  # noqa: F401
from sureclr.config import ViewConfig
from sureclr.data.image_set import resize
from sureclr.data.pictures import Pictures, sent
from sureclr.data.view_parameters import ViewPlan, plan_views
from sureclr.data.views import one_view, two_views, views_of

Route = Callable[[Any], Any]
# Channels, size in pixels, number of images
SETTINGS = {
    "32 px colour": (3, 32, 512),
    "96 px colour": (3, 96, 128),
    "28 px grey": (1, 28, 512),
}
PER_IMAGE = 32  # images a round for the routes that take them one by one
CONFIG = ViewConfig()
PHOTOGRAPH_SIZE, CROPS = 96, 2000  # side of the views in pixels; crops whose sharpness is measured


def transforms(module: Any, size: int, last: list[Any]) -> Any:
    """Return SimCLR's augmentation in torchvision's transforms, v1 or v2."""
    s, radius = CONFIG.strength, CONFIG.blur_radius(size, size)
    jitter = module.ColorJitter(
        s * CONFIG.brightness, s * CONFIG.contrast, s * CONFIG.saturation, s * CONFIG.hue
    )
    blur = module.GaussianBlur(2 * radius + 1, CONFIG.blur_sigma)
    return module.Compose(
        [
            module.RandomResizedCrop(size, CONFIG.crop_area, CONFIG.crop_aspect, antialias=True),
            module.RandomHorizontalFlip(CONFIG.flip),
            module.RandomApply([jitter], CONFIG.jitter_p),
            module.RandomGrayscale(CONFIG.grey_p),
            module.RandomApply([blur], CONFIG.blur_p),
            *last,
        ]
    )


def one_by_one(transform: Callable[[Any], Tensor], convert: Callable[[Tensor], Any]) -> Route:
    """Return a route that makes two views of one image at a time, as a data set does."""
    return lambda images: torch.stack(
        [transform(convert(image)) for _ in range(2) for image in images[:PER_IMAGE]]
    )


def torchvision_routes(size: int) -> dict[str, Route]:
    """Return torchvision's routes: versions 1 and 2, from pictures of PIL and from tensors."""
    from torchvision.transforms import functional as F
    from torchvision.transforms import transforms as v1
    from torchvision.transforms import v2

    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    return {
        "torchvision v1, PIL": one_by_one(transforms(v1, size, [v1.ToTensor()]), F.to_pil_image),
        "torchvision v1, tensor": one_by_one(transforms(v1, size, []), lambda image: image / 255),
        "torchvision v2, PIL": one_by_one(transforms(v2, size, to_float), F.to_pil_image),
        "torchvision v2, tensor": one_by_one(transforms(v2, size, []), lambda image: image / 255),
    }


def kornia_route(size: int) -> Route:
    """Return kornia's route, which takes the whole batch."""
    import kornia.augmentation as K

    s, kernel = CONFIG.strength, 2 * CONFIG.blur_radius(size, size) + 1
    pipeline = torch.nn.Sequential(
        K.RandomResizedCrop((size, size), CONFIG.crop_area, CONFIG.crop_aspect),
        K.RandomHorizontalFlip(CONFIG.flip),
        K.ColorJitter(
            s * CONFIG.brightness,
            s * CONFIG.contrast,
            s * CONFIG.saturation,
            s * CONFIG.hue,
            p=CONFIG.jitter_p,
        ),
        K.RandomGrayscale(p=CONFIG.grey_p),
        K.RandomGaussianBlur((kernel, kernel), CONFIG.blur_sigma, p=CONFIG.blur_p),
    )
    return lambda images: pipeline(images.repeat(2, 1, 1, 1).float() / 255)


def lightly_route(size: int) -> Route:
    """Return lightly's route, which takes one image at a time."""
    from lightly.transforms import SimCLRTransform
    from torchvision.transforms import functional as F

    both = SimCLRTransform(input_size=size, cj_strength=CONFIG.strength, normalize=None)
    return lambda images: [both(F.to_pil_image(image)) for image in images[:PER_IMAGE]]


def routes(channels: int, size: int) -> dict[str, tuple[Route, bool]]:
    """Name -> (route, whether it takes the whole batch)."""
    ours = {
        "ours": (
            lambda images: two_views(images, torch.randint(2**62, (len(images),)), CONFIG),
            True,
        ),
        "floor: uint8 to float32": (lambda images: images.repeat(2, 1, 1, 1).float() / 255, True),
    }
    peers = {name: (route, False) for name, route in torchvision_routes(size).items()}
    if find_spec("kornia") and channels == 3:
        peers["kornia, batched"] = (kornia_route(size), True)
    if find_spec("lightly") and channels == 3:
        peers["lightly, PIL"] = (lightly_route(size), False)
    return {**ours, **peers}


def views_per_second(route: Route, images: Tensor, whole: bool) -> float:
    """Measure a route once, in views per second of CPU time."""
    start = time.process_time()
    route(images)
    return (
        2 * (len(images) if whole else min(len(images), PER_IMAGE)) / (time.process_time() - start)
    )


def race(channels: int, size: int, n: int, rounds: int) -> dict[str, float]:
    """Measure all routes in turn (A B C A B C ...); the median over all rounds but the first."""
    images = torch.randint(
        0,
        256,
        (n, channels, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    entrants = routes(channels, size)
    speeds: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(rounds + 1):
        for name, (route, whole) in entrants.items():
            speeds[name].append(views_per_second(route, images, whole))
    return {name: median(values[1:]) for name, values in speeds.items()}


def photographs(n: int) -> Tensor:
    """Return scikit-learn's two photographs in turn, (n, 3, 427, 640) uint8."""
    from sklearn.datasets import load_sample_images

    both = torch.from_numpy(np.stack(load_sample_images().images))
    return both.permute(0, 3, 1, 2)[torch.arange(n) % 2].contiguous()


def shrunk(images: Tensor, shorter: int) -> Pictures:
    """Return copies whose shorter side has so many pixels, as a folder's cache holds them."""
    height, width = images.shape[2:]
    scale = shorter / min(height, width)
    sides = round(height * scale), round(width * scale)
    small = torch.nn.functional.interpolate(
        images.float(), sides, mode="bilinear", antialias=True, align_corners=False
    )
    return Pictures.of_array(small.round().clamp(0, 255).byte())


def race_photographs(rounds: int, n: int = 64) -> dict[str, float]:
    """Measure the routes of views of photographs in turn; medians as in `race`."""
    images, size = photographs(n), PHOTOGRAPH_SIZE

    def ours(pictures: Tensor | Pictures) -> Tensor:
        return two_views(pictures, torch.randint(2**62, (n,)), CONFIG, size)

    peers = torchvision_routes(size)
    entrants: dict[str, tuple[Route, Any, bool]] = {
        "ours, whole photographs": (ours, Pictures.of_array(images), True),
        "ours, copies of 192 px": (ours, shrunk(images, 2 * size), True),
        "ours, squares of 96 px": (ours, resize(images, size), True),
        **{name: (route, images, False) for name, route in peers.items()},
    }
    speeds: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(rounds + 1):
        for name, (route, given, whole) in entrants.items():
            speeds[name].append(views_per_second(route, given, whole))
    return {name: median(values[1:]) for name, values in speeds.items()}


def sharpness(crops: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean squared Laplacian and the mean squared gradient of each crop, (n,) each."""
    inside = crops[..., 1:-1, 1:-1]
    across = crops[..., 1:-1, 2:] + crops[..., 1:-1, :-2] - 2 * inside
    down = crops[..., 2:, 1:-1] + crops[..., :-2, 1:-1] - 2 * inside
    laplacian = (across + down).square().mean((1, 2, 3))
    gradient = [crops.diff(dim=dim).square().mean((1, 2, 3)) for dim in (2, 3)]
    return laplacian, gradient[0] + gradient[1]


def compare_sharpness(n: int = CROPS) -> dict[str, tuple[float, float, float, float]]:
    """Return how sharp crops are, relative to torchvision's from PIL pictures.

    Returns:
        Of each route: the ratio of squared Laplacians, its standard error, and the same two numbers
        of squared gradients.
    """
    from torchvision.transforms import functional as F
    from torchvision.transforms import transforms as v1

    images, size = photographs(2), PHOTOGRAPH_SIZE
    rows, seeds = torch.arange(n) % 2, torch.arange(n)
    config = ViewConfig(flip=0, jitter_p=0, grey_p=0, blur_p=0)
    crop = v1.RandomResizedCrop(size, CONFIG.crop_area, CONFIG.crop_aspect, antialias=True)
    torch.manual_seed(0)
    pil = [F.to_pil_image(image) for image in images]
    theirs = sharpness(torch.stack([F.to_tensor(crop(pil[row])) for row in rows.tolist()]))
    ratios = {}
    for name, pictures in (
        ("whole photographs", Pictures.of_array(images)),
        ("copies of 192 px", shrunk(images, 2 * size)),
        ("copies of 288 px", shrunk(images, 3 * size)),
        ("copies of 384 px", shrunk(images, 4 * size)),
        ("squares of 96 px", Pictures.of_array(resize(images, size))),
    ):
        ours = sharpness(one_view(pictures.select(rows), seeds, 0, config, size))
        numbers: list[float] = []
        for mine, other in zip(ours, theirs, strict=True):
            ratio = float(mine.mean() / other.mean())
            errors = [float(t.std() / t.mean()) / n**0.5 for t in (mine, other)]
            numbers += [ratio, ratio * (errors[0] ** 2 + errors[1] ** 2) ** 0.5]
        ratios[name] = (numbers[0], numbers[1], numbers[2], numbers[3])
    return ratios


def print_photographs(rounds: int) -> None:
    """Print speed and sharpness of views of photographs."""
    medians = race_photographs(rounds)
    base = medians["torchvision v1, PIL"]
    print("photographs of 640 x 427 px to 96 px: views per CPU second, times torchvision v1 on PIL")
    for route, speed in medians.items():
        print(f"  {route:26} {speed:10,.0f}  {speed / base:6.2f}x")
    print(f"sharpness of {CROPS:,} crops, times torchvision's: squared Laplacian, squared gradient")
    for name, (laplacian, error, gradient, other_error) in compare_sharpness().items():
        print(f"  {name:26} {laplacian:.3f} +- {error:.3f}   {gradient:.3f} +- {other_error:.3f}")


class Operators(TorchDispatchMode):
    """Counts the operators that compute something, and do not only describe memory in another way.

    Attributes:
        count: of the operators.
    """

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call an operator and count it."""
        aliases = [result.alias_info for result in operator._schema.returns]
        self.count += all(alias is None or alias.is_write for alias in aliases)
        return operator(*args, **(kwargs or {}))


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Measure one call, on an accelerator until the device has finished."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    wait = torch.get_device_module(device).synchronize
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def race_on(device: torch.device, size: int, whole: bool, n: int, rounds: int) -> None:
    """Print how fast the ways to make both views of n colour images are on a device.

    Args:
        device: on which the images lie.
        size: side of the views in pixels.
        whole: crop them from whole pictures of twice the size, with antialiasing.
        n: number of images.
        rounds: of which the medians are printed; all ways in turn.
    """
    from torch._inductor import metrics

    side, seeds = (2 * size if whole else size), torch.arange(n)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    here = images.to(device)
    pictures = Pictures.of_array(here)

    def plan() -> ViewPlan:
        return plan_views(pictures, seeds, (0, 1), size, size, CONFIG)

    form, packed = plan().form, plan().packed().to(device)
    compiled = torch.compile(views_of, fullgraph=True, dynamic=False)
    launched: dict[str, int] = {}
    ways: dict[str, Callable[[], Tensor]] = {
        "all images together": lambda: views_of(pictures.values, packed, form),
        "the same, compiled": lambda: compiled(pictures.values, packed, form),
    }
    if device.type == "cpu":
        ways["rows by operation"] = lambda: two_views(images, seeds, CONFIG, size)
    right = two_views(images, seeds, CONFIG, size)
    for name, way in ways.items():
        if "compiled" in name:
            metrics.reset()
            views = way()
            launched[name] = metrics.generated_kernel_count
        else:
            with Operators() as seen:
                views = way()
            launched[name] = seen.count
        if (difference := float((views.cpu() - right).abs().max())) > 1e-5:
            raise SystemExit(f"{name}: the views differ from the CPU's by {difference:.1e}")
    times: dict[str, list[float]] = {name: [] for name in ways}
    drawing = []
    for _ in range(rounds + 1):
        drawing.append(seconds(lambda: sent(plan().packed(), device), device))
        for name, way in ways.items():
            times[name].append(seconds(way, device))
    kind = "whole pictures of twice the size" if whole else "images of this size"
    print(f"{size} px from {kind}, n = {n}: views per second, launches for both views")
    for name, values in times.items():
        print(f"  {name:22} {2 * n / median(values[1:]):12,.0f} {launched[name]:6}")
    print(f"  parameters drawn and sent in {1e3 * median(drawing[1:]):.2f} ms")


def main() -> None:
    """Print the speed of every route in every setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--photographs", action="store_true", help="speed and sharpness of photos")
    parser.add_argument("--device", help="compare the ways to make our views on a device")
    parser.add_argument("--batch", type=int, default=256, help="images, with --device")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 96, 224], help="likewise")
    given = parser.parse_args()
    rounds = given.rounds
    torch.set_num_threads(1)
    if given.device:
        for size in given.sizes:
            for whole in (False, True):
                race_on(torch.device(given.device), size, whole, given.batch, rounds)
        return
    if given.photographs:
        print_photographs(rounds)
        return
    for name, (channels, size, n) in SETTINGS.items():
        medians = race(channels, size, n, rounds)
        base = medians["torchvision v1, PIL"]
        print(f"{name}, n = {n}: views per CPU second, times torchvision v1 on PIL images")
        for route, speed in medians.items():
            print(f"  {route:26} {speed:10,.0f}  {speed / base:6.2f}x")


if __name__ == "__main__":
    main()
