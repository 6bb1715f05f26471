"""Colour scales with even steps for the eye: straight lines in OKLab (Ottosson, 2020).

The diverging scale runs from blue over a neutral grey to orange, both ends equally light, so that neither side shouts,
and people who do not see red and green apart read it too. The sequential one darkens (on dark paper: lightens) evenly.
"""

import numpy as np

Lab = tuple[float, float, float]

STEPS = 33
"""Steps of each scale; odd, so that the middle of the diverging one has a step of its own."""


def _polar(lightness: float, chroma: float, degrees: float) -> Lab:
    angle = np.deg2rad(degrees)
    return lightness, float(chroma * np.cos(angle)), float(chroma * np.sin(angle))


_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_DIVERGING: dict[str, tuple[Lab, Lab, Lab]] = {
    "light": (_polar(0.44, 0.13, 258), _polar(0.96, 0.0, 0), _polar(0.50, 0.14, 45)),
    "dark": (_polar(0.80, 0.11, 245), _polar(0.27, 0.0, 0), _polar(0.82, 0.13, 65)),
}
_SEQUENTIAL: dict[str, tuple[Lab, Lab]] = {
    "light": (_polar(0.91, 0.04, 190), _polar(0.38, 0.10, 255)),
    "dark": (_polar(0.30, 0.03, 250), _polar(0.90, 0.11, 180)),
}


def diverging(theme: str = "light") -> list[str]:
    """`STEPS` colours as #rrggbb, from far below over the middle to far above."""
    low, middle, high = (np.array(colour) for colour in _DIVERGING[theme])
    places = np.linspace(-1, 1, STEPS)
    return [_hex(middle + abs(t) * ((high if t > 0 else low) - middle)) for t in places]


def sequential(theme: str = "light") -> list[str]:
    """`STEPS` colours as #rrggbb, from little to much."""
    low, high = (np.array(colour) for colour in _SEQUENTIAL[theme])
    return [_hex(low + t * (high - low)) for t in np.linspace(0, 1, STEPS)]


def octaves(log_ratios: np.ndarray) -> int:
    """How many octaves to each side a diverging scale needs: 1, 2 or 3, so that most of the values lie inside."""
    finite = np.abs(log_ratios[np.isfinite(log_ratios)])
    return next((n for n in (1, 2) if finite.size == 0 or np.quantile(finite, 0.95) <= n), 3)


def step(log_ratio: float, n_octaves: int) -> int:
    """Which of the diverging scale's `STEPS` colours stands for 2 ** log_ratio, with `n_octaves` to each side."""
    place = (np.clip(log_ratio / n_octaves, -1, 1) + 1) / 2
    return round(float(place) * (STEPS - 1))


def _hex(lab: np.ndarray) -> str:
    """An OKLab colour as sRGB, clipped to what a screen shows."""
    linear = np.clip(_TO_RGB @ (_TO_LMS @ lab) ** 3, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in srgb)
