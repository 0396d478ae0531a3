"""What a reviewer may see of a review, on every edge alike.

A blind review tells nothing that leads to anybody's label: no proposals (its row has none), and not which answer it is
of. While a second opinion on an item is asked for, the review that was decided is shown likewise, and without its
label, to all but the one who decided it: whoever is asked could look it up among the decided ones.

Opinions that differ are for the one who has taken the review to decide between them, and for nobody before.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.answer import AnswerId
from gateway.store.contract import Review, ReviewState, SecondOpinion

NO_ANSWER = AnswerId("")
"""Stands for an answer that must not be looked up."""


def hides(reviewer: str, review: Review) -> bool:
    """Whether *reviewer* may see nothing of what was said about *review* by anybody else."""
    return review.is_blind or (review.panel.second is SecondOpinion.ASKED and review.reviewer != reviewer)


def as_seen_by(reviewer: str, review: Review) -> Review:
    """*review* as *reviewer* may see it."""
    if review.is_blind:
        return replace(review, answer_id=NO_ANSWER, task=replace(review.task, item=0, proposals=()))
    if hides(reviewer, review):
        shown = replace(review, answer_id=NO_ANSWER, reviewer=None, label=None)
        return replace(shown, task=replace(review.task, proposals=()))
    if review.opinions and (review.state is not ReviewState.CLAIMED or review.reviewer != reviewer):
        return replace(review, opinions=())
    return review
