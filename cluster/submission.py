"""What ``ray job submit`` tells the process it starts: its submission, and what its runtime environment has set."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable, so named, in which Ray's job supervisor tells its entrypoint the runtime environment."""


class Submission(NamedTuple):
    """The job that this process is the entrypoint of."""

    id: str
    """What ``ray job logs`` and ``ray job stop`` call it."""
    variables: frozenset[str]
    """The environment variables its runtime environment sets: Ray lets a driver set no other value for them."""


def submission() -> Submission | None:
    """Return the job that this process was submitted as; None when it was started in another way."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    told = json.loads(text)
    variables = (told.get("runtime_env") or {}).get("env_vars") or {}
    return Submission(str(told.get("metadata", {}).get("job_submission_id", "")), frozenset(variables))
