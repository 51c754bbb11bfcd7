"""Merging LoRA experts into one LoRA: Co-Merge and its neighbours."""

from safety.merge.average import Average, AverageConfig
from safety.merge.calibration import Calibration, CalibrationConfig, calibrate, load_calibration
from safety.merge.co_merge import CoMerge, CoMergeConfig
from safety.merge.method import MergeMethod, MergeResult, merge_methods
from safety.merge.task_arithmetic import TaskArithmetic, TaskArithmeticConfig

__all__ = [
    "Average",
    "AverageConfig",
    "Calibration",
    "CalibrationConfig",
    "CoMerge",
    "CoMergeConfig",
    "MergeMethod",
    "MergeResult",
    "TaskArithmetic",
    "TaskArithmeticConfig",
    "calibrate",
    "load_calibration",
    "merge_methods",
]
