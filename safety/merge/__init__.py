"""Merging LoRA experts into one LoRA: Co-Merge, the methods it is compared with, and the scores that decide."""

from safety.merge.calibration import Calibration, CalibrationConfig, calibrate, load_calibration
from safety.merge.method import MergeMethod, MergeResult, MethodConfig, merge_methods

__all__ = [
    "Calibration",
    "CalibrationConfig",
    "MergeMethod",
    "MergeResult",
    "MethodConfig",
    "calibrate",
    "load_calibration",
    "merge_methods",
]
