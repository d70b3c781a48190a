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


def outputs(run: RunFolder, state: RunState) -> list[Output]:
    """In the order of the run's studies; their logs are open then."""
    folders = run.studies([part.prepared.study.name for part in state.parts])
    made = [
        Output(folder, state.alone(part), part.prepared.log) for folder, part in zip(folders, state.parts, strict=True)
    ]
    for output in made:
        output.log.open(output.folder.events)
    return made
