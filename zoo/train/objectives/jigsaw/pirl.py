"""PIRL: an image and a jigsaw of its own patches embed alike, and unlike other images.

Misra and van der Maaten, CVPR 2020, arXiv 1912.01991. What "other images" are is kept in a memory bank: one
vector for every image of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torchvision.transforms import v2 as transforms

from zoo.errors import RecipeError
from zoo.models.resnet import PirlModel
from zoo.pictures import draw_images
from zoo.settings import AreaRange, Share, Side, Temperature, Within
from zoo.train.data.loading import ENDLESS
from zoo.train.machines.processes import gather, world
from zoo.train.objectives.jigsaw.patches import (
    check_blur,
    cut_patches,
    distortion,
    draw_puzzles,
    simclr_distortion,
    to_tensor,
)
from zoo.train.objectives.objective import Objective, as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

View = Literal["jigsaw", "rotation"]
Loss = Literal["nce", "infonce"]
Colors = Literal["pirl", "simclr"]


class PirlTransform:
    """One image -> a crop of it and a transformed view (section 3.2): nine shuffled patches, or a rotated crop.

    image_size: side of the crops. scale: range of their share of the image. crop_size: side of the crop that the
    3 x 3 patches of side patch_size are cut from. colors: "pirl" (`distortion`, which has `strength`) or "simclr",
    those of its later recipe (`simclr_distortion`); both with `blur`.
    """

    def __init__(
        self,
        view: View,
        image_size: int,
        crop_size: int,
        patch_size: int,
        scale: AreaRange = (0.08, 1.0),
        blur: bool = False,
        strength: float = 1.0,
        colors: Colors = "pirl",
    ) -> None:
        if colors == "simclr" and strength != 1.0:
            raise RecipeError(f"PIRL has no colors 'simclr' of strength {strength}; choose pirl, or simclr of 1.0.")
        if patch_size > crop_size // 3:
            raise RecipeError(
                f"Patches of {patch_size} pixels don't fit into the cells of a third of {crop_size}; set "
                "objective.patch_size or objective.crop_size."
            )
        if blur:
            check_blur(min(image_size, patch_size))
        self.view, self.patch_size = view, patch_size
        self.crop = transforms.RandomResizedCrop(image_size, scale=tuple(scale), antialias=True)
        self.jigsaw_crop = transforms.RandomResizedCrop(crop_size, scale=(0.6, 1.0), antialias=True)
        self.distort = simclr_distortion(blur) if colors == "simclr" else distortion(blur=blur, strength=strength)

    def __call__(self, sample: dict[str, Any], seed: int) -> dict[str, Tensor]:
        """image: uint8 array (H, W, 3) -> image (3, h, w) and patches (P, 3, p, p) uint8; order (P,): the true place
        of each patch, or the one view's quarter turns; index and seed of the sample."""
        image = to_tensor(sample["image"])
        first = self.distort(self.crop(image))
        if self.view == "jigsaw":
            order = torch.randperm(9)
            cells = cut_patches(self.jigsaw_crop(image), self.patch_size)
            patches = torch.stack([self.distort(cells[place]) for place in order])
        else:
            order = torch.randint(4, (1,))
            patches = torch.rot90(self.distort(self.crop(image)), int(order), (1, 2)).unsqueeze(0)
        return dict(
            image=first, patches=patches, order=order, index=torch.tensor(sample["index"]), seed=torch.tensor(seed)
        )


# --------------------------------------------------------------------------------- the bank and its losses


class MemoryBank(nn.Module):
    """A unit vector for every image, the moving average of its embeddings (section 3.3).

    vectors: (N, D) float32, on the device, part of the checkpoint, the same on every process.
    """

    vectors: Tensor

    def __init__(self, images: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        self.momentum = momentum
        # the paper's range, 1 / sqrt(dim / 3), makes no difference to unit vectors
        self.register_buffer("vectors", F.normalize(torch.empty(images, dim).uniform_(-1, 1)))

    @torch.no_grad()
    def update(self, index: Tensor, embedding: Tensor) -> None:
        """Move the vectors of images `index` (B,) towards their unit `embedding` (B, D).

        Of an image that is there twice, the later embedding counts.
        """
        old = self.vectors[index]
        new = F.normalize(self.momentum * old + (1 - self.momentum) * embedding)
        # all rows of one image write its last one's vector, since in which order a GPU writes rows is open
        ordered, place = index.sort(stable=True)
        last = place[torch.searchsorted(ordered, ordered, right=True) - 1]
        self.vectors[ordered] = new[last]


def draw_negatives(seed: Tensor, count: int, images: int) -> Tensor:
    """`count` of `images` images for each sample, uniform with replacement: (B, count) int64, on the seeds' device.

    seed: (B,) int64. A function of it alone (splitmix64, Steele et al. 2014), so a sample's negatives don't depend
    on the process or the batch that it is in.
    """

    def shifted(x: Tensor, bits: int) -> Tensor:
        return (x >> bits) & ((1 << (64 - bits)) - 1)  # without the sign

    x = seed.unsqueeze(1) + torch.arange(1, count + 1, device=seed.device) * -0x61C8864680B583EB  # modulo 2^64
    x = (x ^ shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return shifted(x ^ shifted(x, 31), 1) % images


_BUFFER = 1 << 22  # numbers: 16 MB
_DENSE = 8  # up to this many images a candidate, multiplying by the whole bank is faster than gathering from it


class _Scorer:
    """Scores of a few samples at a time (`size`) with their candidates, and what leads their gradient back.

    All samples' rows of the bank, B x C x D numbers, would take 0.5 GB in the paper's setting; so there is one buffer
    for those of a few samples, or for their scores with the whole bank.
    """

    def __init__(self, bank: Tensor, samples: int, count: int) -> None:
        self.bank = bank
        self.dense = len(bank) <= _DENSE * count
        width = len(bank) if self.dense else count * bank.shape[1]
        self.size = min(samples, max(1, _BUFFER // width))
        self.buffer = bank.new_empty(self.size, width)

    def score(self, embedding: Tensor, places: Tensor) -> Tensor:
        """Embeddings (b, D) and their candidates' places (b, C) -> (b, C)."""
        buffer = self.buffer[: len(places)]
        if self.dense:
            return torch.mm(embedding, self.bank.T, out=buffer).gather(1, places)
        rows = buffer.view(-1, self.bank.shape[1])
        torch.index_select(self.bank, 0, places.flatten(), out=rows)
        return (rows.unflatten(0, places.shape) @ embedding.unsqueeze(2)).squeeze(2)

    def lead_back(self, weights: Tensor, places: Tensor) -> Tensor:
        """The gradient of the scores (b, C) that were computed last -> that of their embeddings (b, D)."""
        buffer = self.buffer[: len(places)]
        if self.dense:
            return buffer.zero_().scatter_add_(1, places, weights) @ self.bank
        return (weights.unsqueeze(1) @ buffer.unflatten(1, (places.shape[1], -1))).squeeze(1)


class _BankLoss(torch.autograd.Function):
    """Loss of each sample (B,) by a criterion of its logits, and whether its first candidate scores highest.

    The gradient is formed together with the loss: the rows are fetched once, and a bank that is updated before
    the backward pass does no harm.
    """

    @staticmethod
    def forward(
        ctx: Any, embedding: Tensor, bank: Tensor, candidates: Tensor, temperature: float, criterion: Any
    ) -> tuple[Tensor, Tensor]:
        losses, hits, gradients = [], [], []
        scorer = _Scorer(bank, *candidates.shape)
        for some, places in zip(embedding.split(scorer.size), candidates.split(scorer.size)):
            scores = scorer.score(some, places)
            hits.append(scores[:, 0] >= scores.amax(dim=1))
            with torch.enable_grad():
                scores.requires_grad_()
                loss = criterion(scores / temperature)
            losses.append(loss.detach())
            if ctx.needs_input_grad[0]:
                (weights,) = torch.autograd.grad(loss, scores, torch.ones_like(loss))
                gradients.append(scorer.lead_back(weights, places))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        ctx.mark_non_differentiable(hit := torch.cat(hits))
        return torch.cat(losses), hit

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return loss_gradient.unsqueeze(1) * gradient, None, None, None, None


def bank_loss(
    embedding: Tensor,
    bank: Tensor,
    candidates: Tensor,
    temperature: float,
    criterion: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Mean loss of unit embeddings (B, D) against their candidates (B, 1 + K) in the bank (N, D), always in float32.

    candidates: the positive's place first. criterion: logits (b, 1 + K) -> losses (b,).
    Also returns which samples' positive scores highest, (B,) bool. The bank gets no gradient.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        losses, hit = _BankLoss.apply(embedding.float(), bank, candidates, temperature, criterion)
        return losses.mean(), hit


@torch.no_grad()
def mean_exp(embedding: Tensor, bank: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Mean over all logits of their exponential, a scalar: what Z is estimated by (section 3.3)."""
    with torch.autocast(embedding.device.type, enabled=False):
        scorer = _Scorer(bank, *candidates.shape)
        groups = zip(embedding.float().split(scorer.size), candidates.split(scorer.size))
        scores = (scorer.score(some, places) for some, places in groups)
        return torch.cat([(some / temperature).exp_().mean(dim=1) for some in scores]).mean()


def nce(logits: Tensor, normalizer: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation (Gutmann & Hyvärinen 2010; Wu et al. 2018): logits (b, 1 + K) -> losses (b,).

    normalizer: Z of exp(logits) / Z. The noise is uniform over the `images` images.
    """
    noise = (logits.shape[1] - 1) / images
    probability = logits.exp() / normalizer
    sum_ = probability + (noise + torch.finfo(torch.float32).eps)
    return -(probability[:, 0] / sum_[:, 0]).log() - (noise / sum_[:, 1:]).log().sum(dim=1)


def infonce(logits: Tensor) -> Tensor:
    """Cross-entropy of choosing the first candidate: logits (b, 1 + K) -> losses (b,)."""
    return -logits.log_softmax(dim=1)[:, 0]


# ------------------------------------------------------------------------------------------ the objective


class Pirl(Objective):
    """Both embeddings of an image, its own and its transformed view's, against the bank (sections 3.1 to 3.3).

    view: "jigsaw" (PIRL's own) or "rotation". loss: "nce", or "infonce" as in the later recipes. temperature: of
    the logits. negatives: of each sample and loss, drawn from the whole bank. momentum: of the bank.
    view_weight: share of the transformed view's loss. frozen_statistics: batch norms use their running statistics in
    training too. Those mix images and patches, which the network gets used to so; in a curriculum, for a run's end.
    image_size, crop_size, patch_size, scale, blur, strength, colors: see PirlTransform.

    Logs both losses and, of the transformed views, the share that is nearest to their own image among all candidates.
    """

    model: PirlModel
    normalizer: Tensor

    def __init__(
        self,
        model: PirlModel,
        source: Sized,
        view: View = "jigsaw",
        loss: Loss = "nce",
        temperature: Temperature = 0.07,
        negatives: Annotated[int, Within(1, 1 << 20)] = 32_000,
        momentum: Share = 0.5,
        view_weight: Share = 0.5,
        frozen_statistics: bool = False,
        image_size: Side = 224,
        crop_size: Side = 255,
        patch_size: Side = 64,
        scale: AreaRange = (0.08, 1.0),
        blur: bool = False,
        strength: Annotated[float, Within(0, 1.5)] = 1.0,
        colors: Colors = "pirl",
    ) -> None:
        if not isinstance(model, PirlModel):
            raise RecipeError(
                f"PIRL trains a model with heads for images and views, not {type(model).__name__}; choose one of "
                "`zoo list 'pirl*' --form pretraining` as the recipe's model."
            )
        patches = 9 if view == "jigsaw" else 1
        if model.patches != patches:
            raise RecipeError(
                f"A {view} has {patches} patches, and the model's head takes {model.patches}; set model_args.patches."
            )
        if len(source) >= ENDLESS:
            raise RecipeError(
                "PIRL remembers every image, so endless procedural data won't do; set data.samples to their number."
            )
        super().__init__(model, source)
        self.loss, self.temperature, self.negatives, self.view_weight = loss, temperature, negatives, view_weight
        self.configure(frozen_statistics=frozen_statistics)
        self.transform = PirlTransform(view, image_size, crop_size, patch_size, scale, blur, strength, colors)
        self.bank = MemoryBank(len(source), model.dim, momentum)
        self.register_buffer("normalizer", torch.zeros(()))  # Z; zero: not fixed yet
        self._normalizer_is_fixed = False  # what the device knows, so as not to ask it at every step
        self._embedded: list[tuple[Tensor, Tensor]] = []  # index and embedding of the step's images
        # the processes keep equal banks by themselves; sending the first one's at every step would be 0.7 GB
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, ["bank.vectors"])

    def configure(self, **settings: Any) -> None:
        if "frozen_statistics" in settings:
            self.frozen_statistics = settings.pop("frozen_statistics")
            self.train(self.training)
        super().configure(**settings)

    def train(self, mode: bool = True) -> Pirl:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and not self.frozen_statistics)
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, h, w), patches (B, P, 3, p, p) uint8, index and seed (B,) -> the loss and its parts."""
        image = F.normalize(self.model(self.to_input(batch["image"])).float())
        view = F.normalize(self.model.embed_view(self.to_input(batch["patches"])).float())
        losses = self.losses(image, view, *self.candidates(batch["index"], batch["seed"]))
        if self.training:
            self._embedded.append((batch["index"], image.detach()))
        return losses

    @torch.no_grad()
    def own_image_is_nearest(self, batch: dict[str, Tensor]) -> Tensor:
        """For each transformed view of a batch, whether the nearest of all vectors in the bank is its image's: (B,)."""
        view = F.normalize(self.model.embed_view(self.to_input(batch["patches"])).float())
        return (view @ self.bank.vectors.T).argmax(dim=1) == batch["index"]

    def candidates(self, index: Tensor, seed: Tensor) -> list[Tensor]:
        """Places in the bank (B, 1 + K) for the images' loss and for the views': the image's own, then negatives."""
        drawn = draw_negatives(seed, 2 * self.negatives, len(self.bank.vectors))
        return [torch.cat((index.unsqueeze(1), negatives), dim=1) for negatives in drawn.chunk(2, dim=1)]

    def losses(
        self, image: Tensor, view: Tensor, image_candidates: Tensor, view_candidates: Tensor
    ) -> dict[str, Tensor]:
        """From unit embeddings (B, D) and candidates (B, 1 + K) to what `forward` returns.

        The first call of the NCE loss fixes Z, from the views of all processes.
        """
        bank = self.bank.vectors
        criterion = infonce if self.loss == "infonce" else partial(nce, normalizer=self.normalizer, images=len(bank))
        if self.loss == "nce" and not self._normalizer_is_fixed:
            if self.normalizer == 0:  # else it is the checkpoint's
                self._fix_normalizer(mean_exp(view, bank, view_candidates, self.temperature))
            self._normalizer_is_fixed = True
        image_loss, _ = bank_loss(image, bank, image_candidates, self.temperature, criterion)
        view_loss, hit = bank_loss(view, bank, view_candidates, self.temperature, criterion)
        return dict(
            loss=torch.lerp(image_loss, view_loss, self.view_weight),
            image_loss=image_loss,
            view_loss=view_loss,
            view_accuracy=hit.float().mean(),
        )

    def _fix_normalizer(self, mean: Tensor) -> None:
        if world() > 1:
            dist.all_reduce(mean)
            mean /= world()
        self.normalizer.copy_(len(self.bank.vectors) * mean)

    def after_step(self, progress: float) -> None:
        """Put the step's images into the bank: those of all processes, the later one if an image is there twice."""
        index, embedding = (gather(torch.cat(parts)) for parts in zip(*self._embedded))
        self._embedded.clear()
        self.bank.update(index, embedding)

    def show(self, samples: Sequence[dict[str, Any]], batch: dict[str, Tensor]) -> Figure:
        """The image, the crop that is embedded, and its transformed view."""
        crops = as_pixels(batch["image"])
        caption = (
            "The network sees the crop and, apart from it, the {}.\nIt is to embed both alike, and unlike other images."
        )
        if self.model.patches == 1:
            views = as_pixels(batch["patches"][:, 0])
            rows = [(sample["image"] / 255, *pair) for sample, *pair in zip(samples, crops, views)]
            labels = [f"turned by {90 * turns}\N{DEGREE SIGN}" for turns in batch["order"].flatten().tolist()]
            names = ("in the data", "the crop", "the turned view")
            return draw_images(rows, names, "", caption.format("turned view"), labels, panel=2.4)
        caption = caption.format("shuffled patches") + " Numbers: the patches' places, row by row."
        return draw_puzzles(samples, batch["patches"], batch["order"], caption, list(crops))
