"""The colour operations of SimCLR's augmentation, each with one factor an image.

At the same factor each equals torchvision's to 1e-5. Everywhere: x is (n, c, h, w) float32 in
[0, 1] with c = 3 (red, green, blue), 1 (grey) or any other number of bands, and `factor` is (n,).
Only an image of three bands has hue and saturation: `jitter` leaves both out for any other, as
torchvision does for grey ones. What a luma is in colour is the mean of all bands in the contrast of
images with neither one nor three.
"""

from torch import Tensor, maximum, minimum, stack


def grey(x: Tensor) -> Tensor:
    """Return the luma of colour images by the ITU-R 601 weights, with torchvision's four digits.

    Args:
        x: (n, 3, h, w).

    Returns:
        (n, 1, h, w).
    """
    red, green, blue = x.split(1, dim=1)
    luma: Tensor = 0.2989 * red
    return luma.add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _luma(x: Tensor) -> Tensor:
    """The luma of colours; the image itself where it has another number of bands."""
    return grey(x) if x.shape[1] == 3 else x


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """The blend factor x + (1 - factor) other, clamped; `other` broadcasts."""
    f = factor.view(-1, 1, 1, 1)
    return (f * x).add_((1 - f) * other).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend the image with black."""
    return (factor.view(-1, 1, 1, 1) * x).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend the image with its mean luma (the mean over its pixels).

    An image that has neither one nor three bands is blended with the mean over pixels and bands.
    """
    return _blend(x, _luma(x).mean(dim=(1, 2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend the image with its luma."""
    return _blend(x, grey(x), factor)


def hue(x: Tensor, factor: Tensor) -> Tensor:
    """Turn the hue of HSV by `factor` turns (1 is the full circle), in [-1/2, 1/2].

    This is exact, unlike the linear rotation of YIQ. With the hue H in sixths of a turn and chroma
    = max - min, each channel is min + chroma t(H), where the trapezium wave t is 1 within one sixth
    of the channel's own hue and 0 beyond two sixths: clamp(|H - 3|, 1, 2) - 1 for red,
    2 - clamp(|H - 2|, 1, 2) for green, and the same around 4 for blue. The result may leave [0, 1]
    by one rounding.
    """
    red, green, blue = x.unbind(dim=1)
    top = maximum(maximum(red, green), blue)
    chroma = top - minimum(minimum(red, green), blue)
    # 0 or 1: whether the channel is below the maximum
    not_red, not_green = (top - red).sign_(), (top - green).sign_()
    # H times chroma. A lerp by 0 or 1 is exact, and `where` takes five times as long
    at_green, at_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    sixths = (green - blue).lerp_(at_green.lerp_(at_blue, not_green), not_red)
    sixths.div_(chroma.clamp_min(1e-12)).add_(6 * factor.view(-1, 1, 1))
    sixths.sub_((sixths / 6).floor_(), alpha=6)  # modulo 6; remainder_ takes four times as long
    wave = [(sixths - centre).abs_().clamp_(1, 2).mul_(chroma) for centre in (3, 2, 4)]
    high = top + chroma
    return stack([wave[0].add_(top).sub_(chroma, alpha=2), high - wave[1], high - wave[2]], dim=1)


# In the order of the columns of `factors`; the numbers in `order` are positions in this tuple
OPERATIONS = (brightness, contrast, saturation, hue)


def jitter(x: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Change the colours in place as torchvision's ColorJitter does, each image in its own order.

    Each operation is computed on the images that need it, which a CPU does fastest.

    Args:
        x: (n, c, h, w); overwritten.
        factors: (n, 4), one for each of `OPERATIONS`.
        order: (n, 4) int64. Entry k is the operation of step k; -1 leaves the image as it is.

    Returns:
        x.
    """
    operations = OPERATIONS if x.shape[1] == 3 else OPERATIONS[:2]
    for step in order.unbind(dim=1):
        for number, operation in enumerate(operations):
            rows = (step == number).nonzero().squeeze(1)
            x.index_copy_(0, rows, operation(x.index_select(0, rows), factors[rows, number]))
    return x


def jitter_together(x: Tensor, operations: Tensor, amounts: Tensor) -> Tensor:
    """Do the same as `jitter` with all images at once, for an accelerator: nothing waits for it.

    At each step every image is blended with the base that its operation asks for, and where the
    operation is the hue, that is used instead.

    Args:
        x: (n, c, h, w).
        operations: (n, 4) integers. Entry k is the operation of step k, as in `order` of `jitter`.
        amounts: (n, 4), the factor of each step; 1 where the operation is none that the image has.

    Returns:
        (n, c, h, w).
    """
    for operation, amount in zip(operations.unbind(1), amounts.unbind(1), strict=True):
        number, luma = operation.view(-1, 1, 1, 1), _luma(x)
        base = luma.mean(dim=(1, 2, 3), keepdim=True) * (number == OPERATIONS.index(contrast))
        if x.shape[1] == 3:
            base = luma.where(number == OPERATIONS.index(saturation), base)
            turned = hue(x, amount)
            x = turned.where(number == OPERATIONS.index(hue), _blend(x, base, amount))
        else:
            x = _blend(x, base, amount)
    return x
