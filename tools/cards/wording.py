"""What cards say of families, forms, licenses and measurements, in sentences."""

from __future__ import annotations

LICENSES = {
    "CC-BY-NC-SA-4.0": (
        "[CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/). You may use, share and change them, "
        "but not commercially; you must name their authors; and what you make from them and share, such as "
        "fine-tuned weights, must be under the same license."
    ),
    "MIT": (
        "the [MIT license](https://opensource.org/license/mit). You may use, share and change them, commercially too, "
        "as long as the license's text stays with them."
    ),
    "Apache-2.0": (
        "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0). You may use, share and change them, "
        "commercially too, as long as the license and its notices stay with them."
    ),
}

HEADERS_ONLY = ("itpn", "fast_itpn")
"""Families whose license stands in the headers of the source alone."""

FAMILIES = {
    "croco": (
        "CroCo is pretrained on pairs of photos of one scene from two viewpoints: most of the first photo is hidden, "
        "and the network rebuilds it with the help of the second. To do that well, it has to find out what corresponds "
        "to what: so it learns the geometry of scenes without labels."
    ),
    "pointmaps": (
        "DUSt3R and its kind make 3D points of two photos of a scene, without being told anything of the cameras: one "
        "for each pixel of both, in the first camera's frame. They are CroCo with a second decoder and a head for each "
        "photo, trained on pairs with known depth and cameras. Depth, focal length, relative pose, matches and point "
        "clouds follow from the points (`zoo.geometry`)."
    ),
    "convmae": (
        "ConvMAE is pretrained by hiding three quarters of an image's patches and rebuilding their pixels. Two "
        "convolutional stages come before the transformer; their convolutions are masked, so that nothing leaks from "
        "hidden patches, and here they run on the visible ones only."
    ),
    "hivit": (
        "HiViT is a hierarchical vision transformer that keeps every 16x16 patch separate until its main stage, so "
        "that in masked pretraining hidden patches are left out from the first layer on."
    ),
    "itpn": (
        "iTPN puts a feature pyramid on HiViT and pretrains both together by masked image modeling, so that the neck "
        "of a detector or segmenter is not trained from nothing."
    ),
    "fast_itpn": (
        "Fast-iTPN is iTPN's faster successor: convolutional first stages, a plain transformer with gated MLPs as the "
        "main one, pretrained to predict the tokens of a CLIP teacher at hidden patches."
    ),
    "pirl": (
        "PIRL trains a plain ResNet, timm's own, to embed an image and a jigsaw of its patches alike, and unlike the "
        "other images of the data, which a memory bank holds."
    ),
    "jigclu": (
        "Jigsaw Clustering cuts every image of a batch into overlapping quarters, shuffles all of them and tiles them "
        "into montages. A plain ResNet, timm's own, sees only these and learns to tell which quarters came from one "
        "image, and where each one stood."
    ),
    "rotnet": (
        "RotNet turns images by 0, 90, 180 or 270 degrees; a plain ResNet, timm's own, learns to tell by how much."
    ),
    "npid": (
        "NPID trains a plain ResNet, timm's own, to tell every image of the data from all others, whose embeddings a "
        "memory bank holds; NPID++ does it with more negatives and for longer."
    ),
    "clusterfit": (
        "ClusterFit clusters the features of a network that was pretrained without labels, here RotNet's, and trains a "
        "plain ResNet, timm's own, to tell the clusters apart."
    ),
    "jigsaw": (
        "Jigsaw shuffles nine patches of an image by one of a fixed set of permutations; a plain ResNet, timm's own, "
        "learns to tell by which."
    ),
}
"""What a newcomer should know of a family."""

ABOUT = {
    "encoder": "This is its backbone for single images, with the whole of timm's protocol.",
    "pretraining": (
        "This is the whole of what pretraining trains: take it to go on with pretraining or to look at the pretext "
        "task. For features take the backbone."
    ),
    "pointmaps": (
        "This is the whole model: it does its task as it is. Its encoder alone is in the zoo too, as a backbone for "
        "single photos."
    ),
    ("croco", "encoder"): (
        "This is its encoder: a vision transformer for single photos, without class token. Fine-tune it for dense "
        "geometric tasks such as depth or surface normals."
    ),
    ("croco", "pretraining"): (
        "This is its encoder without the second photo: a masked autoencoder (MAE), which rebuilds the hidden patches "
        "of a photo from the visible ones alone. It is CroCo's control in comparisons."
    ),
    ("croco", "binocular"): (
        "This is its encoder with the two-image decoder: called with two photos, it gives the tokens of the first in "
        "the light of the second. Fine-tune it for stereo matching, optical flow, relative pose and other tasks on "
        "two photos; it can also show how it completes a hidden one."
    ),
    ("croco", "dense"): (
        "This is its encoder with the two-image decoder and a DPT head, fine-tuned with ground truth: unlike the "
        "other forms, it does its task as it is."
    ),
}
"""What a newcomer should know of a form; of all families' if the family has no text of its own."""

CHANNELS = {
    2: "the disparity in pixels and its confidence",
    3: "the flow along x, along y (both in pixels) and its confidence",
}
"""What the dense forms' channels are, by their number."""

PREDICTIONS = {
    "right": "**the model, with the true second view**",
    "wrong": "the model, with a view of another place",
    "self": "the model, with image 1 itself as the second",
    "shuffled": "the model, with the second view's patches in disorder",
    "zeros": "each patch's mean",
    "copy": "image 2 at the same place",
    "copy_one_scalar": "the same, best scaled",
    "color_copy": "image 2's color at the same place",
    "color_copy_one_scalar": "the same, best scaled",
    "global_shift": "image 2, shifted as a whole",
    "global_shift_one_scalar": "the same, best scaled",
    "global_shift_two_scalars": "the same, color and structure best scaled",
    "oracle": "image 2, warped by the true geometry",
}
MATCHERS = {
    "features": "the encoder's tokens",
    "untrained_features": "the tokens of an untrained encoder",
    "pixels": "normalized pixels",
    "same_place": "staying in place",
    "chance": "chance",
}
CLAIMS = {
    "uses_reference": "It makes use of the second image",
    "matches_views": "It makes use of the second image by finding what corresponds to what",
}
"""What `zoo eval pairs` calls its rows, its matches and the claims of its verdict."""


OWN_TASKS = {
    "own_image_nearest": "Jigsaws whose nearest vector in the whole bank is their own image's",
    "permutation_accuracy": "Permutations found",
    "location_accuracy": "Quarters whose place is found",
}
"""What `zoo eval pretext` measures."""
