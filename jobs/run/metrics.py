"""Prometheus metrics of the stages (see ``cluster.metrics``), shown by ``docs/grafana/safetydpo.json``."""

from __future__ import annotations

from cluster.metrics import Counter, Gauge, Histogram

KEPT = "kept"
SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0)

STAGE_SECONDS = Gauge("safetydpo_stage_seconds", "Seconds that a stage took", ("run", "stage"))
IMAGES = Counter("safetydpo_images_total", "Images rendered", ("run", "stage"))
GROUP_SECONDS = Histogram(
    "safetydpo_group_seconds", "Seconds an actor spent on rendering a group", ("run", "stage"), SECONDS
)
ROWS = Counter(
    "safetydpo_generate_rows_total",
    f"Rows judged, by category and outcome: {KEPT}, or the reason of the rejection",
    ("run", "category", "outcome"),
)
PAIR_STEPS = Counter(
    "safetydpo_train_pair_steps_total", "Preference pairs times optimizer steps, over all workers", ("run", "expert")
)
LOSS = Gauge("safetydpo_train_loss", "Loss of the last step", ("run", "expert"))
IMPLICIT_ACCURACY = Gauge(
    "safetydpo_train_implicit_accuracy", "Share of the last step's pairs whose winner is preferred", ("run", "expert")
)
TRIALS = Counter("safetydpo_merge_trials_total", "Trials of the search that have finished", ("run",))
BEST_SCORE = Gauge("safetydpo_merge_best_score", "Lowest surrogate score of this start's trials", ("run",))
IP = Gauge(
    "safetydpo_evaluate_ip", "Inappropriate probability on test prompts, from 0 to 1", ("run", "model", "category")
)
