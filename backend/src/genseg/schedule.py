"""How far a run is, and what holds at that point: learning rate, stages, held-out scans."""

import time
from dataclasses import dataclass, field, replace

from genseg.methods.joint import Stage
from genseg.methods.versemi import ramp
from genseg.settings import Settings

PRETRAIN_SHARE = 0.08  # of the time; in iterations: a quarter as many generator steps as segmenter steps
SHAPES_SHARE = 0.04  # of the time, at most, for registering scans; in iterations: a map for three generator steps
BALANCED_UNTIL = 0.2  # of the segmenter's training; longer, and what is thin is drawn too thick
BALANCE = 0.5  # until then: a structure that is not found at first may otherwise never be
SYNTHETIC_FROM = 0.2  # of the segmenter's training: before that it cannot judge a synthetic pair
MIX_FROM = 0.2  # the same for learning from scans without labels,
TEACHES_FROM = 120  # but not before so many steps: a teacher that knows nothing teaches that there is nothing
LEVEL3_UNTIL = 0.6  # then the learned meta-parameters are frozen and all labels are used
WINDOW = 32  # steps for which a fold is held out; level 3 comes due twice in them, never at their very beginning
FOLDS = 5
LEARNING_RATE = 2e-3
WARM_UP = 20  # steps


@dataclass
class Clock:
    """Progress by time or by steps. `elapsed` and `pretrain` survive a restart; waiting in between does not count."""

    settings: Settings
    elapsed: float = 0.0  # seconds of training, pretraining included
    pretrain_seconds: float = 0.0
    reported: float = 0.0  # `elapsed` when the curves last got a point
    _since: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        now = time.monotonic()
        self.elapsed, self._since = self.elapsed + now - self._since, now

    @property
    def pretrain_total(self) -> int | None:
        iterations = self.settings.iterations
        return None if iterations is None else max(1, iterations // 4)

    def pretrain_progress(self, steps: int) -> float:
        if self.pretrain_total is not None:
            return steps / self.pretrain_total
        assert self.settings.budget is not None
        return self.elapsed / (PRETRAIN_SHARE * self.settings.budget)

    def shapes_wanted(self, found: int, possible: int) -> int:
        """How many of the possible maps to other scans' shapes are to be found before the generator is pretrained."""
        if self.pretrain_total is not None:
            return min(possible, max(1, self.pretrain_total // 3))
        assert self.settings.budget is not None
        return possible if self.elapsed < SHAPES_SHARE * self.settings.budget else found

    def progress(self, steps: int) -> float:
        """0..1 of the segmenter's training."""
        if self.settings.iterations is not None:
            return steps / self.settings.iterations
        assert self.settings.budget is not None
        left = max(1e-6, self.settings.budget - self.pretrain_seconds)
        return min(1.0, (self.elapsed - self.pretrain_seconds) / left)

    def share(self, steps: int) -> float:
        """0..1 of the whole training, which a budget gives as time, pretraining included."""
        if self.settings.iterations is not None:
            return steps / self.settings.iterations
        assert self.settings.budget is not None
        return min(1.0, self.elapsed / self.settings.budget)

    def seconds_left(self, progress: float) -> float | None:
        if self.settings.budget is not None and self.settings.iterations is None:
            return max(0.0, self.settings.budget - self.elapsed)
        spent = self.elapsed - self.pretrain_seconds
        return spent / progress * (1 - progress) if progress > 0.02 else None


def learning_rate(progress: float, step: int, scale: float) -> float:
    """Polynomial decay with a short warm-up; `scale` is halved when a run has diverged."""
    return LEARNING_RATE * scale * max(0.0, 1 - progress) ** 0.9 * min(1.0, (step + 1) / WARM_UP)


def stage_at(progress: float, step: int, patients: list[str], settings: Settings) -> Stage:
    """What is at work. Level 3 holds a fold of the labelled scans out for some steps, then the next one.

    `patients` names each labelled scan's patient: all scans of one are held out together. With a
    single patient nothing can be held out: independently changed copies validate.
    """
    plain = Stage(balance=BALANCE if progress < BALANCED_UNTIL else 0.0)
    if settings.method == "supervised" or progress < SYNTHETIC_FROM:
        return plain
    teaching = settings.mixes and progress >= MIX_FROM and step >= TEACHES_FROM
    begun = max(MIX_FROM, progress * TEACHES_FROM / max(1, step))  # where in the training that was, or will be
    consistency = ramp(progress, begun) if teaching else None
    if not settings.generates:
        return replace(plain, consistency=consistency)
    common = replace(plain, synthetic=True, level1=progress < LEVEL3_UNTIL, consistency=consistency)
    if not common.level1 or not settings.closes_the_loop or settings.synthetic_weight == 0:
        return common
    names = list(dict.fromkeys(patients))
    everything = range(len(patients))
    if len(names) == 1:
        return replace(common, level3=True, validation=list(everything))
    folds = min(FOLDS, len(names))
    held_out = set(names[(step + WINDOW // 4) // WINDOW % folds :: folds])
    return replace(
        common,
        level3=True,
        train=[i for i in everything if patients[i] not in held_out],
        validation=[i for i in everything if patients[i] in held_out],
    )
