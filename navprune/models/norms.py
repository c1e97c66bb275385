"""Kernels of a GroupNorm with what stands behind it: a sum and a ReLU, forwards and backwards, on one thread.

Arrays are float32 and flat. Images lie in them as [images, pixels, channels]. Each image is taken while it is in the
cache: eight channels at once, or a whole group where it has more, so that a group's size must be 1, 2, 4 or a multiple
of eight, and there must be at least eight channels. Where the channels are no multiple of eight, the last eight
overlap those before.
"""

from typing import Any

import numpy as np

from navprune.kernels import entry, inner
from navprune.simulator.lanes import (
    WIDTH,
    choose,
    f32,
    get,
    load,
    maximum,
    root,
    store,
    swapped_1,
    swapped_2,
    swapped_4,
)


@inner
def _over_groups(a: Any, group: Any) -> Any:
    """In each lane the sum over its group's lanes."""
    if group > 1:
        a = a + swapped_1(a)
    if group > 2:
        a = a + swapped_2(a)
    if group > 4:
        a = a + swapped_4(a)
    return a


@inner
def _moment(x: Any, start: Any, size: Any, pixels: Any, channels: Any, mean: Any, square: Any) -> Any:
    """Sums over the pixels and every WIDTH of `size` channels from `start` on: of x - mean, or of its square."""
    even, odd = f32(0.0), f32(0.0)
    for first in range(start, start + size, WIDTH):
        at = first
        for _ in range(pixels // 2):
            a, b = load(x, at) - mean, load(x, at + channels) - mean
            even, odd = (even + a * a, odd + b * b) if square else (even + a, odd + b)
            at += 2 * channels
        if pixels % 2:
            a = load(x, at) - mean
            even = even + a * a if square else even + a
    return even + odd


@entry
def forward(
    x: Any, other: Any, weight: Any, bias: Any, y: Any, statistics: Any,
    pixels: Any, group: Any, added: Any, rectified: Any, eps: Any,
) -> None:  # fmt: skip
    """y = norm(x), plus `other` if `added`, and its positive part if `rectified`.

    `statistics` [images, blocks, 2, WIDTH] take the mean and the inverse deviation for `backward`; a block is WIDTH
    channels or a group.
    """
    channels = len(weight)
    size = max(group, WIDTH)
    blocks = (channels + size - 1) // size
    share = f32(np.float32(1) / np.float32(pixels * group))
    for image in range(len(statistics)):
        for block in range(blocks):
            low = min(block * size, channels - size)
            start = image * pixels * channels + low
            mean = _over_groups(_moment(x, start, size, pixels, channels, f32(0.0), False), group) * share
            variance = _over_groups(_moment(x, start, size, pixels, channels, mean, True), group) * share
            scale = f32(1.0) / root(variance + f32(eps))
            place = (image * blocks + block) * 2 * WIDTH
            store(statistics, place, mean)
            store(statistics, place + WIDTH, scale)
            for c in range(0, size, WIDTH):
                slope = scale * load(weight, low + c)
                offset = load(bias, low + c)
                for at in range(start + c, start + c + pixels * channels, channels):
                    value = (load(x, at) - mean) * slope + offset
                    if added:
                        value = value + load(other, at)
                    if rectified:
                        value = maximum(value, f32(0.0))
                    store(y, at, value)


@inner
def _passed(dy: Any, y: Any, at: Any, rectified: Any) -> Any:
    """The gradient before the ReLU."""
    return choose(load(y, at) > f32(0.0), load(dy, at), f32(0.0)) if rectified else load(dy, at)


@inner
def _count(total: Any, at: Any, value: Any, beyond: Any) -> None:
    """Add lanes to a total, of those that overlap none before `beyond`."""
    if at >= beyond:
        store(total, at, load(total, at) + value)
    else:
        for lane in range(beyond - at, WIDTH):
            total[at + lane] += get(value, lane)


@entry
def backward(
    dy: Any, x: Any, y: Any, weight: Any, statistics: Any, dx: Any, dother: Any, dweight: Any, dbias: Any,
    pixels: Any, group: Any, added: Any, rectified: Any,
) -> None:  # fmt: skip
    """Gradients of `forward`, whose arguments are those of the same names; `dweight` and `dbias` are added to."""
    channels = len(weight)
    size = max(group, WIDTH)
    blocks = (channels + size - 1) // size
    share = f32(np.float32(1) / np.float32(pixels * group))
    for image in range(len(statistics)):
        for block in range(blocks):
            low = min(block * size, channels - size)
            start = image * pixels * channels + low
            place = (image * blocks + block) * 2 * WIDTH
            mean, scale = load(statistics, place), load(statistics, place + WIDTH)
            constant, linear = f32(0.0), f32(0.0)
            for c in range(0, size, WIDTH):
                plain, tilted = f32(0.0), f32(0.0)
                for at in range(start + c, start + c + pixels * channels, channels):
                    slope = _passed(dy, y, at, rectified)
                    if added:
                        store(dother, at, slope)
                    plain = plain + slope
                    tilted = tilted + slope * (load(x, at) - mean)
                tilted = tilted * scale
                _count(dbias, low + c, plain, block * size)
                _count(dweight, low + c, tilted, block * size)
                constant = constant + plain * load(weight, low + c)
                linear = linear + tilted * load(weight, low + c)
            constant = _over_groups(constant, group) * share * scale
            linear = _over_groups(linear, group) * share * scale * scale
            for c in range(0, size, WIDTH):
                factor = scale * load(weight, low + c)
                for at in range(start + c, start + c + pixels * channels, channels):
                    slope = load(dother, at) if added else _passed(dy, y, at, rectified)
                    store(dx, at, slope * factor - (load(x, at) - mean) * linear - constant)
