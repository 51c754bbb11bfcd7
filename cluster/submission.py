"""The submission that this process was started by, when ``ray job submit`` started it."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable (Ray's name for it) in which Ray's job supervisor passes the runtime environment to its entrypoint."""


class Submission(NamedTuple):
    """The job that this process is the entrypoint of."""

    id: str
    """Its id for ``ray job logs`` and ``ray job stop``."""
    variables: frozenset[str]
    """Environment variables that its runtime environment sets: Ray does not let a driver change them."""


def submission() -> Submission | None:
    """Return the submission of this process; None when it was started in another way."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    document = json.loads(text)
    variables = (document.get("runtime_env") or {}).get("env_vars") or {}
    return Submission(str(document.get("metadata", {}).get("job_submission_id", "")), frozenset(variables))
