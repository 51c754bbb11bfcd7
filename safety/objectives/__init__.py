"""Training objectives of experts."""

from safety.objectives.objective import Objective, ObjectiveValue, PreferenceErrors, objectives

__all__ = ["Objective", "ObjectiveValue", "PreferenceErrors", "objectives"]
