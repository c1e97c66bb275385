"""Compiled functions that colour pixels: once for each, by the triangle that it shows."""

import math

import numpy as np

from navprune.kernels import njit
from navprune.scenes.files.materials import CLAMP, LINEAR, MIRROR, NEAREST
from navprune.simulator.view import INNER, edges_of


@njit(**INNER)
def shade(tree, surface, view, triangles, rgb):
    """Colour each pixel once, by the triangle it shows: corner colours times texture, without light."""
    height, width = triangles.shape
    known, plain, textured = -1, False, False  # the triangle that these and the edges belong to
    edges = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    for row in range(height):
        y = row + (0.5 - height * 0.5)
        for column in range(width):
            triangle = triangles[row, column]
            if triangle < 0:
                rgb[row, column, :] = 0
                continue
            colours = surface.colours[triangle]
            if triangle != known:
                known = triangle
                textured = surface.texture[triangle] >= 0
                plain = not textured and _is_plain(colours)
                edges = edges_of(tree, triangle, view)
            if plain:
                for k in range(3):
                    rgb[row, column, k] = _rounded(colours[0, k])
                continue
            x = column + (0.5 - width * 0.5)
            texel = _texel(surface, triangle, edges, x, y) if textured else (1.0, 1.0, 1.0, 1.0)
            a, b, c = _shares(edges, x, y)
            for k, share in enumerate(texel[:3]):
                colour = a * colours[0, k] + b * colours[1, k] + c * colours[2, k]
                rgb[row, column, k] = _rounded(colour * share)


@njit(**INNER)
def _rounded(colour):
    """A colour in 255ths as it is shown."""
    return np.uint8(min(max(float(colour), 0.0), 255.0) + 0.5)


@njit(**INNER)
def _is_plain(colours):
    """Whether the three corners have one colour."""
    for k in range(3):
        if colours[0, k] != colours[1, k] or colours[0, k] != colours[2, k]:
            return False
    return True


@njit(**INNER)
def is_kept(cutout, tree, triangle, view, x, y):
    """Whether a triangle covers a pixel: its alpha there is not below its cutoff."""
    cutoff = cutout.cutoff[triangle]
    if cutoff == 0:
        return True
    edges = edges_of(tree, triangle, view)
    shares = _shares(edges, x, y)
    alpha = 0.0
    for k in range(3):
        alpha += shares[k] * cutout.alpha[triangle, k] / 255
    if cutout.surface.texture[triangle] >= 0:
        alpha *= _texel(cutout.surface, triangle, edges, x, y)[3]
    return alpha >= cutoff - 1e-6  # room for rounding, so that a cutoff of 1 keeps what is opaque


@njit(**INNER)
def _shares(edges, x, y):
    """What a place in the image shows of the three corners, in the world."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = edges
    a, b, c = ax * x + ay * y + az, bx * x + by * y + bz, cx * x + cy * y + cz
    scale = 1.0 / (a + b + c)
    return a * scale, b * scale, c * scale


@njit(**INNER)
def _texel(surface, triangle, edges, x, y):
    """Red, green, blue and alpha in [0, 1] of a triangle's texture at a pixel.

    How far its sides reach in the texture is taken once for each two by two pixels, from the differences of their
    coordinates, as OpenGL's implementations do. These blocks start from the image's middle; for sizes that four
    divides they are OpenGL's.
    """
    uv = surface.uv[triangle]
    u, v = _coordinates(edges, uv, x, y)
    left, lower = 2 * np.floor(x / 2) + 0.5, 2 * np.floor(y / 2) + 1.5
    u_0, v_0 = _coordinates(edges, uv, left, lower)
    u_x, v_x = _coordinates(edges, uv, left + 1, lower)
    u_y, v_y = _coordinates(edges, uv, left, lower - 1)
    return _filter(surface, surface.texture[triangle], u, v, u_x - u_0, v_x - v_0, u_y - u_0, v_y - v_0)


@njit(**INNER)
def _coordinates(edges, uv, x, y):
    """Texture coordinates at a place in the image."""
    a, b, c = _shares(edges, x, y)
    return a * uv[0, 0] + b * uv[1, 0] + c * uv[2, 0], a * uv[0, 1] + b * uv[1, 1] + c * uv[2, 1]


@njit(**INNER)
def _filter(surface, texture, u, v, du_dx, dv_dx, du_dy, dv_dy):
    """A texture's colour where a pixel's sides span these differences; OpenGL 4.6, section 8.14."""
    levels, sampler = surface.levels[texture], surface.samplers[texture]
    _, _, magnify, minify, between_levels = sampler
    _, height, width = levels[0]
    last = len(levels) - 1
    while levels[last, 1] == 0:
        last -= 1
    # Squared, in texels; half of its logarithm is the level that fits.
    footprint = max((du_dx * width) ** 2 + (dv_dx * height) ** 2, (du_dy * width) ** 2 + (dv_dy * height) ** 2)
    if footprint <= (2.0 if magnify == LINEAR and minify == NEAREST and last > 0 else 1.0):
        return _read(surface.texels, levels[0], sampler, magnify, u, v)
    # A logarithm that is straight between powers of two, as habitat-sim's software renderer takes it.
    mantissa, exponent = math.frexp(footprint)
    detail = 0.5 * (exponent + 2 * mantissa - 2)
    if between_levels != LINEAR:
        detail = np.ceil(detail + 0.5) - 1
    # Of a triangle that is seen edge on, a neighbour's coordinates may be no numbers.
    level = max(0, min(int(min(detail, float(last))), last))
    fine = _read(surface.texels, levels[level], sampler, minify, u, v)
    share = detail - level
    if share == 0 or level == last:
        return fine
    coarse = _read(surface.texels, levels[level + 1], sampler, minify, u, v)
    return (
        fine[0] + (coarse[0] - fine[0]) * share,
        fine[1] + (coarse[1] - fine[1]) * share,
        fine[2] + (coarse[2] - fine[2]) * share,
        fine[3] + (coarse[3] - fine[3]) * share,
    )


@njit(**INNER)
def _read(texels, level, sampler, smooth, u, v):
    """Red, green, blue and alpha in [0, 1] of one level: of the nearest texel or between the four nearest."""
    first, height, width = level
    wrap_u, wrap_v = sampler[0], sampler[1]
    x, y = _folded(u, wrap_u) * width, _folded(v, wrap_v) * height
    if smooth == NEAREST:
        texel = texels[first + _wrapped(int(y), height, wrap_v) * width + _wrapped(int(x), width, wrap_u)]
        return texel[0] / 255, texel[1] / 255, texel[2] / 255, texel[3] / 255
    column, row = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
    right, down = x - 0.5 - column, y - 0.5 - row
    upper = first + _wrapped(row, height, wrap_v) * width
    lower = first + _wrapped(row + 1, height, wrap_v) * width
    left_column, right_column = _wrapped(column, width, wrap_u), _wrapped(column + 1, width, wrap_u)
    a, b = texels[upper + left_column], texels[upper + right_column]
    c, d = texels[lower + left_column], texels[lower + right_column]
    wa, wb = (1 - right) * (1 - down) / 255, right * (1 - down) / 255
    wc, wd = (1 - right) * down / 255, right * down / 255
    return (
        a[0] * wa + b[0] * wb + c[0] * wc + d[0] * wd,
        a[1] * wa + b[1] * wb + c[1] * wc + d[1] * wd,
        a[2] * wa + b[2] * wb + c[2] * wc + d[2] * wd,
        a[3] * wa + b[3] * wb + c[3] * wc + d[3] * wd,
    )


@njit(**INNER)
def _folded(t, wrap):
    """A coordinate brought near the image, before rounding could matter: into [0, 1], or [0, 2] where it mirrors."""
    if wrap == CLAMP:
        return min(max(t, 0.0), 1.0)
    if wrap == MIRROR:
        return t - 2 * np.floor(t / 2)
    return t - np.floor(t)


@njit(**INNER)
def _wrapped(index, size, wrap):
    """The texel, from 0 to size - 1, that an index at or beyond the image's border means."""
    if wrap == CLAMP:
        return min(max(index, 0), size - 1)
    if wrap == MIRROR:
        index %= 2 * size
        return min(index, 2 * size - 1 - index)
    return index % size
