"""What kind of scenes are drawn, and how large they are rendered."""

from dataclasses import dataclass
from typing import Annotated

from zoo.errors import RecipeError
from zoo.settings import Rising, Side, Within

_Fraction = Annotated[float, Within(0, 10, above=True)]

Fractions = Annotated[tuple[_Fraction, _Fraction], Rising()]
"""A range of lengths, each a fraction of the image width."""


@dataclass(frozen=True)
class SceneConfig:
    """What is rendered; hashable and picklable.

    Attributes:
        image_size: height and width in pixels, or one number for both.
        supersample: rays per pixel and axis; 2 makes each pixel the mean of 2 x 2 rays.
        displacement: range of the median displacement of co-visible pixels between the views, as a fraction
            of the image width. A pair's wish is uniform in it, and met but for a few pairs of odd geometry.
        texture_scale: range of the textures' dominant wavelength, as a fraction of the image width when seen
            at the median depth of the scene. Coarser is easier to match.
        textures: a folder (searched recursively) of images, put on about half of the surfaces; or "scikit-image",
            the photos that come with that package and are free for any use.
        rectified: the second camera is moved along camera 1's x axis only, to the right, so the pair is one of a
            stereo camera's: rows match rows, and what moves does so by its disparity. The displacement is then that
            disparity; where a camera can't stand so far away, it is nearer.
    """

    image_size: tuple[Side, Side] | Side = 64
    supersample: Annotated[int, Within(1, 64)] = 1
    displacement: Fractions = (0.03, 0.2)
    texture_scale: Fractions = (0.12, 0.35)
    textures: str | None = None
    rectified: bool = False

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.supersample) < 1:
            raise RecipeError("A scene needs image_size and supersample of at least 1. Raise the smaller one.")
        for name in ("displacement", "texture_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise RecipeError(
                    f"{name} of a scene is {low, high}, no range of positive fractions of the image width. "
                    "Give (low, high) with 0 < low <= high."
                )

    @property
    def height(self) -> int:
        """Image height in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[0]

    @property
    def width(self) -> int:
        """Image width in pixels."""
        return self.image_size if isinstance(self.image_size, int) else self.image_size[1]
