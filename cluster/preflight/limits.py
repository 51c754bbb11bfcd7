"""From where on a finding is a warning or a failure."""

from __future__ import annotations

from pydantic import Field

from cluster.base import Config


class PreflightLimits(Config):
    """The preflight's thresholds and its patience."""

    check_s: float = Field(20.0, gt=0, description="longest time of one check")
    ray_s: float = Field(30.0, gt=0, description="longest time until a running cluster answers")
    disk_warn_gib: float = Field(10.0, ge=0, description="free space under which a disk is warned of")
    disk_fail_gib: float = Field(2.0, ge=0)
    disk_warn_used: float = Field(0.95, gt=0, le=1, description="share in use over which Ray stops to spill objects")
    clock_warn_s: float = Field(2.0, gt=0, description="difference between two clocks")
    clock_fail_s: float = Field(30.0, gt=0)
    upload_warn_mib: float = Field(50.0, gt=0, description="size of what ray job submit uploads")
    upload_fail_mib: float = Field(100.0, gt=0)
