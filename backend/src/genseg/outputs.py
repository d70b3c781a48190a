"""Where the results of a run's studies go."""

from dataclasses import dataclass

from genseg.events import EventLog
from genseg.runfolder import RunFolder
from genseg.state import RunState


@dataclass
class Output:
    """One study: its folder, the run seen from it, and its log. A single study has the run's own."""

    folder: RunFolder
    state: RunState
    log: EventLog


def outputs(run: RunFolder, state: RunState, log: EventLog) -> list[Output]:
    """In the order of the run's studies. The log of the run must be open."""
    if len(state.parts) == 1:
        return [Output(run, state, log)]
    names = [part.prepared.study.name for part in state.parts]
    return [
        Output(folder, state.alone(part), log.of_study(name, folder.events))
        for folder, part, name in zip(run.studies(names), state.parts, names, strict=True)
    ]
