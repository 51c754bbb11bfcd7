"""Inception features as in published FIDs, by pytorch-fid's network and weights: ``inception@FILE.safetensors``.

FID of CLIPScore's features has another scale: ``evaluate.fid_features`` takes these for FID alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from safety.errors import ArtifactFormatError, ConfigError
from safety.features.extractor import FEATURE_DIGITS, feature_extractors
from safety.features.inception_net import DIMENSIONS, InceptionNet
from safety.weight_files import checksum, read_weights

NAME = "inception"
BATCH = 16
FIELD = "evaluate.features"
CONVERT = (
    "fetch pt_inception-2015-12-05-6726825d.pth from pytorch-fid's releases, then write it anew: "
    "save_file(torch.load('pt_inception-2015-12-05-6726825d.pth', weights_only=True), 'inception.safetensors')"
)
CLASSIFIER = "fc."
"""The weights' last layer, which FID does not use."""
COUNTERS = "num_batches_tracked"
"""Of training; older files lack them."""


class InceptionFeatures:
    """The network's pooled features of images (see ``FeatureExtractor``)."""

    dimensions = DIMENSIONS

    def __init__(self, net: InceptionNet, digest: str, device: str) -> None:
        self._net = net.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self.name = f"{NAME}-2015/pool-{DIMENSIONS}@{digest[:FEATURE_DIGITS]}"

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Return fp32 [B, 2048] of images uint8 [B, 3, H, W], resized as pytorch-fid does."""
        parts = [self._net(part.to(self._device).float() / 255.0).cpu() for part in torch.split(images, BATCH)]
        return torch.cat(parts)


@feature_extractors.register(NAME)
def load_inception(*, device: str = "cpu", weights: str | None = None) -> InceptionFeatures:
    """Load the network.

    Raises:
        ConfigError: No file is named.
        ArtifactFormatError: The file is no safetensors, or of another network.
    """
    if weights is None:
        raise ConfigError(
            f"the features {NAME!r} do not say where their weights are",
            field=FIELD,
            fix=f"write {NAME}@FILE.safetensors; {CONVERT}",
        )
    path = Path(weights)
    tensors = read_weights(path, FIELD, CONVERT)
    net = InceptionNet()
    try:
        found = net.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(CLASSIFIER)}, strict=False)
    except RuntimeError as error:  # Of other shapes.
        raise _other(path, " ".join(str(error).split())[:160]) from None
    lacking = [name for name in found.missing_keys if not name.endswith(COUNTERS)]
    if lacking or found.unexpected_keys:
        what = f"lacks {lacking[0]}" if lacking else f"has {found.unexpected_keys[0]} besides"
        raise _other(path, f"it {what}")
    return InceptionFeatures(net, checksum([path], None), device)


def _other(path: Path, reason: str) -> ArtifactFormatError:
    return ArtifactFormatError(f"{path} has the weights of another network ({reason})", field=FIELD, fix=CONVERT)
