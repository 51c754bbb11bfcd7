"""Image judges: what a picture shows, and how unsafe it is."""

from safety.emoji.judge import EmojiJudge
from safety.judges.judge import ConceptJudge, Judge, JudgeConfig, judges, load_judge
from safety.judges.verdict import Verdict, judge_images

__all__ = ["ConceptJudge", "EmojiJudge", "Judge", "JudgeConfig", "Verdict", "judge_images", "judges", "load_judge"]
