"""What a run does when memory runs out or a loss is not finite."""

import gc

import torch

from genseg.errors import RunFailed
from genseg.methods.synthesis import meta_plan
from genseg.plan import COARSEST, Plan
from genseg.runfolder import RunFolder
from genseg.sampling import Sampler
from genseg.schedule import Clock
from genseg.state import Part, RunState

ATTEMPTS = 3  # at going back before the run gives up


class Recovery:
    """Goes on with less memory, or goes back to the last good checkpoint."""

    def __init__(self, run: RunFolder, state: RunState):
        self.run, self.state = run, state

    def make_smaller(self) -> None:
        """Halve the batch; at a batch of one halve the patch's longest side; give up where nothing is left."""
        plan = self.state.joint.plan
        coarsest = 2 ** (len(plan.filters) - 1)
        longest = plan.patch.index(max(plan.patch))
        side = max(COARSEST * coarsest, plan.patch[longest] // 2 // coarsest * coarsest)
        smaller: dict[str, int | list[int]]
        if plan.batch > 1:
            smaller, what = {"batch": plan.batch // 2}, f"the batch is now {plan.batch // 2}"
        elif side < plan.patch[longest]:
            patch = [side if axis == longest else length for axis, length in enumerate(plan.patch)]
            smaller, what = {"patch": patch}, f"the patch is now {' x '.join(map(str, patch))}"
        else:
            raise RunFailed(
                "out_of_memory",
                "The memory does not suffice even for the smallest patch.",
                "Close other programs, or choose another --device.",
            )
        plan, turn = plan.model_copy(update=smaller), self.state.turn
        use_plan(turn, plan)
        folders = self.run.studies([part.prepared.study.name for part in self.state.parts])
        plan.save(folders[self.state.parts.index(turn)].plan)
        self.state.joint.optimiser.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        turn.prepared.log.warn(
            "out_of_memory", f"The memory did not suffice; {what}.", "Close other programs if you can."
        )

    def go_back(self, clock: Clock) -> None:
        """To the last good checkpoint, with half the learning rate; after some attempts the run gives up."""
        failed_at, log = self.state.counters.step, self.state.prepared.log
        diverged, scale = self.state.counters.diverged + 1, self.state.counters.rate_scale / 2
        if diverged > ATTEMPTS:
            raise RunFailed(
                "diverged",
                f"The training diverged {diverged} times although the learning rate was lowered.",
                "Look for scans with extreme intensities; then train again, perhaps with another --seed.",
            )
        self.state.load(self.run.last)
        counters = self.state.counters
        counters.diverged, counters.rate_scale = diverged, scale
        counters.elapsed, counters.pretrain_seconds = clock.elapsed, clock.pretrain_seconds  # the time is spent
        self.state.apply_rate_scale()
        self.state.save(self.run.last)
        log.warn(
            "not_finite",
            f"A loss or a weight was not finite at step {failed_at}; training goes on from step {counters.step} "
            f"with {scale:g} of the learning rate.",
        )


def use_plan(part: Part, plan: Plan) -> None:
    """The same networks with another batch or patch."""
    joint = part.joint
    part.prepared.plan = joint.plan = plan
    joint.sampler = Sampler(part.prepared.labelled, plan)
    if (m := joint.mixing) is not None and m.unlabelled is not None:
        m.unlabelled, m.meta_unlabelled = (Sampler(part.prepared.unlabelled, p) for p in (plan, meta_plan(plan)[0]))
    if joint.synthesis is not None:
        smaller, joint.synthesis.meta_batch = meta_plan(plan)
        joint.synthesis.meta_sampler = Sampler(part.prepared.labelled, smaller)
