"""What an entry of the catalog says of a variant, its weights, their figures and their paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Source:
    """One place that has a variant's weights.

    kind: "package" (a file in zoo/weights/bundled), "hub" (a repository of the authors' on the Hugging Face Hub), "url"
        or "gdrive" (a Google Drive file id).
    location: the file's name, the repository, the URL or the id.
    layout: "zoo" (our key names, safetensors) or "reference" (a checkpoint to be converted).
    revision: of a repository: the commit, or how it begins. recorded_sha256: the digest of the weights, or how it
        begins. Both as somebody has recorded them once: asked for first, and told if they differ, never demanded.
    filename: of a file on Google Drive, whose id says nothing, as its authors or users call it.
    """

    kind: str
    location: str
    layout: str = "reference"
    revision: str = ""
    recorded_sha256: str = ""
    filename: str = ""


@dataclass(frozen=True)
class Metric:
    """A published figure, with the conditions it was measured under and where it stands.

    secondary: read elsewhere than in what its authors published, and not checked against that.
    """

    task: str
    dataset: str
    name: str
    value: float
    conditions: str
    source: str
    secondary: bool = False

    @property
    def cited(self) -> str:
        """The source, marked where it is a secondary one."""
        return f"secondary source: {self.source}" if self.secondary else self.source


@dataclass(frozen=True)
class Paper:
    title: str
    authors: str
    venue: str
    year: int
    arxiv: str
    bibtex_key: str


@dataclass(frozen=True)
class Variant:
    """An architecture and, when it has weights, the tag that names them.

    architecture: timm's grammar: family, size, patch, image size, then what is special.
    tag: what the weights were trained on; "" for an architecture without published weights.
    family: the file in zoo/models that builds it.
    form: "encoder" (a one-image backbone, with a classifier if the weights have one), "pretraining" (a backbone
        with what its pretext task adds), "binocular" (encoder + two-image decoder), "dense" (binocular + dense
        head) or "pointmaps" (encoder + two decoders and heads for 3D points).
    args: arguments of the family's constructor for this form; tags of one architecture may differ in them.
    parameters: number of trained parameters.
    num_classes: classes of the weights' own classifier, 0 for none.
    input_size: channels, height, width. mean, std: of the normalization that the weights expect.
    sources: tried in order; the user's mirror and the Hub come before them (see zoo/weights).
    training: data and recipe, in a sentence or two.
    recipe: the one of the package that trains it; "" if there is none. unknown: why there is none for published
        weights, and what else is not known of the file or its training; sentences.
    notice: what else there is to say of the license, or what the authors ask of users besides it; sentences.
    """

    architecture: str
    tag: str
    family: str
    form: str
    description: str
    args: dict[str, Any]
    parameters: int
    license: str
    paper: Paper
    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    num_classes: int = 0
    sources: tuple[Source, ...] = ()
    recipe: str = ""
    unknown: str = ""
    training: str = ""
    metrics: tuple[Metric, ...] = field(default=())
    notice: str = ""

    @property
    def name(self) -> str:
        """timm's name of the variant: architecture, and the tag behind a dot."""
        return f"{self.architecture}.{self.tag}" if self.tag else self.architecture
