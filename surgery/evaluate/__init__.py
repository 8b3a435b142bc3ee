"""How good a policy is: true returns of whole episodes, against what was recorded, random play, people, its teacher.

evaluation = evaluate(checkpoint, episodes=30)
print(evaluation.mean, evaluation.confirmed)
"""

from surgery.evaluate.diagnosis import Finding, diagnose
from surgery.evaluate.episodes import Episodes, at_random, play, shares
from surgery.evaluate.evaluation import Evaluation, evaluate, record
from surgery.evaluate.measure import fits
from surgery.evaluate.scores import Score, below, recorded, recorded_scores

__all__ = [
    "Episodes",
    "Evaluation",
    "Finding",
    "Score",
    "at_random",
    "below",
    "diagnose",
    "evaluate",
    "fits",
    "play",
    "record",
    "recorded",
    "recorded_scores",
    "shares",
]
