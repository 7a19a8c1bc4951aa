"""Random crops: cut out of images, resized with a bilinear filter, and flipped.

Images of the size of their views need no antialiasing, as no crop of them shrinks. Whole pictures
of any size do. On a CPU each operation works on the crops that need it, one picture after the
other; on an accelerator all crops go through a few large operations, whose indices and weights are
made there from a few numbers an image, so that nothing waits. Both equal torchvision's
`resized_crop(..., antialias=True)` to 1e-5.
"""

import torch
from torch import Tensor
from torch.nn import functional

from sureclr.data.pictures import Pictures

# Pixels of crops that an accelerator works on together: 256 MiB of float32, and twice that of
# indices
PIXELS_AT_ONCE = 2**26


def crop_and_flip(images: Tensor, box: Tensor, flip: Tensor) -> Tensor:
    """Cut a box out of each image, resize it back bilinearly, and flip some images.

    A crop is never larger than the image, so nothing shrinks, and torchvision's `antialias` makes
    no difference. For crops of another size than the result see `crop_pictures`.

    Args:
        images: (n, c, h, w) uint8.
        box: (n, 4) int64 pixels: top, left, height, width. On the same device.
        flip: (n,) bool. On the same device.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    n, c, height, width = images.shape
    first = torch.arange(0, n * c * height, c * height, device=images.device)
    return crop_lines(images.view(n * c * height, width), first, (c, height), box, flip)


def crop_lines(
    lines: Tensor, first: Tensor, sides: tuple[int, int], box: Tensor, flip: Tensor
) -> Tensor:
    """Do the same as `crop_and_flip` for images whose lines lie anywhere in a tensor.

    Args:
        lines: (m, w) uint8, the lines of the images; those of an image follow each other.
        first: (n,) int64, the place of each image's first line.
        sides: channels c and height h of the images.
        box: (n, 4) integers.
        flip: (n,) bool.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    (c, height), width = sides, lines.shape[1]
    shape = len(first), c, height, width
    top, bottom, down = _neighbours(box[:, 0], box[:, 2], height)
    left, right, along = (
        t.flip(1).where(flip[:, None], t) for t in _neighbours(box[:, 1], box[:, 3], width)
    )
    # Line 0 of every channel
    start = first[:, None, None] + torch.arange(0, c * height, height, device=first.device)[:, None]
    upper, lower = (
        lines.index_select(0, (start + y[:, None]).view(-1)).view(shape).float()
        for y in (top, bottom)
    )
    x = upper.lerp_(lower, down[:, None, :, None])
    left, right = (index[:, None, None].expand(shape) for index in (left, right))
    return x.gather(3, left).lerp_(x.gather(3, right), along[:, None, None]).div_(255)


def _neighbours(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels between which each of `size` output pixels lies, and the second one's weight.

    Each is (n, size). Pixel i of the output lies at (i + 1/2) length / size - 1/2, clamped to the
    crop. Computed in integers, so exact at any size: float32 positions (and grid_sample) miss
    torchvision's values by 1.3e-5 at 96 pixels.
    """
    start, length = start[:, None], length[:, None]
    # In units of 1 / (2 size) pixels
    position = (2 * torch.arange(size, device=start.device) + 1) * length - size
    position.clamp_(min=0)
    near = position // (2 * size)
    weight = (position - 2 * size * near).float() / (2 * size)
    return start + near, start + torch.minimum(near + 1, length - 1), weight


def crop_pictures(pictures: Pictures, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut a box out of each whole picture, resize it, and flip some results, one by one on a CPU.

    The filter is bilinear and antialiased: a triangle of one source pixel on each side, or of one
    result pixel where the crop shrinks, as torchvision's `resized_crop(..., antialias=True)`.

    Args:
        pictures: n whole pictures on the CPU.
        box: (n, 4) int64 pixels of the picture: top, left, height, width.
        flip: (n,) bool.
        size: side of the result in pixels.

    Returns:
        (n, c, size, size) float32 in [0, 1].
    """
    x = torch.empty(len(pictures), pictures.channels, size, size)
    for i, (top, left, height, width) in enumerate(box.tolist()):
        crop = pictures[i][None, :, top : top + height, left : left + width].float()
        x[i] = functional.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
    rows = flip.nonzero().squeeze(1)
    x.div_(255)
    return x.index_copy_(0, rows, x.index_select(0, rows).flip(3))


def crop_together(
    values: Tensor,
    channels: int,
    place: Tensor,
    sides: Tensor,
    box: Tensor,
    flip: Tensor,
    shape: tuple[int, int],
    largest: tuple[int, int],
) -> Tensor:
    """Do the same as `crop_pictures` in a few large operations, for an accelerator.

    Each crop is a matrix in every band, and its resized form a product with two sparse matrices of
    weights. Smaller crops are filled up to the largest one with pixels whose weight is 0.
    Whoever lets torch round float32 products to TF32 (`torch.set_float32_matmul_precision`) loses
    about 1e-3 here (emulated).

    Args:
        values: (m,) uint8, the pixels of all pictures.
        channels: c.
        place: (n,) int64, the place of each picture's first value.
        sides: (n, 2) integers, height and width of each picture.
        box: (n, 4) integers: top, left, height, width of each crop.
        flip: (n,) bool.
        shape: height and width of the result.
        largest: height and width that no crop exceeds.

    Returns:
        (n, c, h, w) float32 in [0, 1].
    """
    device = values.device
    top, left, height, width = box[..., None].long().unbind(1)  # each (n, 1)
    row = top + torch.minimum(torch.arange(largest[0], device=device), height - 1)
    column = left + torch.minimum(torch.arange(largest[1], device=device), width - 1)
    band = torch.arange(channels, device=device)[:, None] * sides[:, :1, None]
    line = (band + row[:, None]) * sides[:, 1:, None] + place[:, None, None]  # (n, c, largest[0])
    some = max(1, PIXELS_AT_ONCE // (channels * largest[0] * largest[1]))
    parts = []
    # Autocast would compute these products in bfloat16
    with torch.autocast(device.type, enabled=False):
        for rows in (slice(at, at + some) for at in range(0, len(box), some)):
            index = line[rows, ..., None] + column[rows, None, None]  # (n, c, *largest)
            pixels = values.index_select(0, index.view(-1)).view(index.shape).float()
            down = _triangles(height[rows], shape[0], largest[0])
            along = _triangles(width[rows], shape[1], largest[1])
            along = along.flip(1).where(flip[rows, None, None], along)
            parts.append(down[:, None] @ (pixels @ along[:, None].mT))
    return torch.cat(parts).div_(255)


def _triangles(length: Tensor, size: int, largest: int) -> Tensor:
    """The weight of each source pixel for each result pixel, (n, size, largest) float32.

    The filter is a triangle of one source pixel on each side, or of one result pixel where the crop
    shrinks; pixels beyond the length have weight 0. The steps and their float32 are those of
    torch's `interpolate`.

    Args:
        length: (n, 1) pixels.
        size: number of result pixels.
        largest: number of source pixels.
    """
    scale = (length.float() / size)[..., None]
    pixel, result = (torch.arange(count, device=length.device) for count in (largest, size))
    distance = pixel - scale * (result[:, None] + 0.5) + 0.5
    weight = (1 - (distance / scale.clamp(min=1)).abs()).clamp(min=0)
    weight *= pixel < length[..., None]
    return weight / weight.sum(dim=2, keepdim=True)
