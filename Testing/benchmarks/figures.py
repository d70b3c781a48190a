"""Tables and plots of the benchmark's rows, and where they stand in docs/benchmarks.md."""

import re
import statistics
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

from runs import ARMS, PEERS, Row, seconds_of
from scipy.stats import ttest_1samp

from genseg.settings import PARTS

PAIRS = (
    ("supervised", "none"), ("warp", "supervised"), ("separate", "supervised"), ("genseg", "supervised"),
    ("versemi", "supervised"), ("genseg+versemi", "supervised"), ("genseg", "separate"), ("genseg", "warp"),
    ("versemi", "genseg"), ("genseg+versemi", "genseg"), ("genseg+versemi", "versemi"),
    ("warp+versemi", "versemi"), ("genseg+versemi", "warp+versemi"), ("restyle", "warp"), ("genseg", "restyle"),
    ("restyle+versemi", "warp+versemi"), ("genseg+versemi", "restyle+versemi"),
    *((arm, peer) for arm in ("supervised", "genseg+versemi") for peer in PEERS),
    *(("versemi", f"versemi-{part}") for part in PARTS),  # what each part is worth
)  # fmt: skip
FEWEST_SEEDS = 3  # from which on a difference has a test of its own
JOINT = ("genseg", "versemi", "genseg+versemi")  # of which it is asked what they are worth in labels
PANELS = 4  # side by side
COLOURS = dict(
    zip(ARMS, ("#888888", "#444444", "#b07aa1", "#f28e2b", "#4e79a7", "#59a14f", "#edc948", "#e15759"), strict=False)
)
Scores = dict[tuple[str, str], dict[str, float]]  # (set, arm): {seed: Dice}


def arm_of(row: Row) -> str:
    """The arm, and what of it is not the default."""
    more = [row[name] for name, usual in (("generator", "spade"), ("segmenter", "dynunet")) if row[name] != usual]
    return ", ".join([row["arm"], *more, *([f"from {row['start']}"] if row["start"] else [])])


def scores_of(rows: Sequence[Row]) -> Scores:
    """Dice of the trainings of one length."""
    found: Scores = {}
    for row in rows:
        found.setdefault((row["set"], arm_of(row)), {})[row["seed"]] = float(row["dice"])
    return found


def text(rows: Sequence[Row]) -> str:
    """Markdown: what was reached, the differences between arms, and what it cost, for each length on its own."""
    return "\n\n".join(part for _, mine, what in _lengths(rows) for part in (what, *_tables(mine)))


def _lengths(rows: Sequence[Row]) -> list[tuple[str, list[Row], str]]:
    """Each length, seconds of each machine for themselves: a name for files, its rows, and a heading."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["length"], seconds_of(row)), []).append(row)
    return [
        (
            re.sub(r"\W+", "-", f"{length} {of}".strip()),
            mine,
            f"**{length}, {of}**" if of else f"**The time of {length} supervised steps**",
        )
        for (length, of), mine in found.items()
    ]


def _tables(rows: Sequence[Row]) -> list[str]:
    scores = scores_of(rows)
    made = (table(rows), differences(scores), claims(scores), efficiency(scores), costs(rows))
    return [part for part in made if part]


def table(rows: Sequence[Row]) -> str:
    """A line for each set and arm: means over the seeds, and the SD of Dice. A peer has its version beside it."""
    others = any(row["other_dice"] for row in rows)
    head = ["data, labelled", "arm", "seeds", "Dice", "SD", "HD95", "NSD", *(["Dice, other source"] if others else [])]
    lines = [_line([*head, "steps"]), "|" + "---|" * (len(head) + 1)]
    for (set_, arm), same in _groups(rows).items():
        dices = [float(row["dice"]) for row in same]
        spread = f"{statistics.stdev(dices):.3f}" if len(dices) > 1 else "–"
        named = f"{arm} ({same[0]['code'].partition(' ')[2]})" if arm in PEERS else arm
        cells = [set_, named, str(len(same)), f"{statistics.mean(dices):.3f}", spread]
        cells += [_mean(same, "hd95", 1), _mean(same, "nsd", 3), *([_mean(same, "other_dice", 3)] if others else [])]
        lines.append(_line([*cells, _mean(same, "steps", 0)]))
    return "\n".join(lines)


def costs(rows: Sequence[Row]) -> str:
    """Seconds of a core (or a graphics card) and memory. A first usable model is there after a fifth of a training."""
    head = ["data, labelled", "arm", "first mask, s", "last mask, s", "a step, s", "in supervised steps"]
    lines = [_line([*head, "a scan predicted and scored, s", "peak MB"]), "|" + "---|" * (len(head) + 2)]
    groups = _groups(rows)
    for (set_, arm), same in groups.items():
        prepare, train, predict = (_average(same, name) for name in ("prepare_s", "train_s", "predict_s"))
        step, plain = _step(same), _step(groups.get((set_, "supervised"), []))
        first = "–" if arm in PEERS else f"{prepare + train / 5 + predict:.0f}"
        cells = [first, f"{prepare + train + predict:.0f}", f"{step:.2f}"]
        cells += [f"{step / plain:.2f}" if plain else "–", f"{predict:.2f}", _mean(same, "memory_mb", 0)]
        lines.append(_line([set_, arm, *cells]))
    return "\n".join(lines)


def _step(rows: Sequence[Row]) -> float:
    """Seconds of a step, the generator's pretraining included; 0 where there are no rows."""
    return statistics.mean(float(r["train_s"]) / max(1, int(r["steps"])) for r in rows) if rows else 0.0


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each set and arm, in the order of sets and arms."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["set"], arm_of(row)), []).append(row)
    return {key: found[key] for key in sorted(found, key=_order)}


def differences(scores: Scores) -> str:
    """Points of Dice between two arms with the same scans: mean (standard error) for each set and over all studies.

    All, and p of a t-test, are over studies, so that one with many seeds or several numbers of labels counts no more.
    Another generator, segmenter or start is compared with the same arm that has the usual one, and arms that have the
    same other one with each other.
    """
    lines = [_line(["difference", "all studies", "p", "each set of labelled scans"]), "|---|---|---|---|"]
    variants = [(arm, arm.split(",")[0]) for arm in sorted({arm for _, arm in scores}) if "," in arm]
    within = [(a + of, b + of) for of in variants_of(scores) if of for a, b in PAIRS]
    for a, b in (*PAIRS, *within, *variants):
        known = {set_: values for set_ in sets_of(scores) if (values := paired(scores, set_, a, b))}
        if not known:
            continue
        of_study: dict[str, list[float]] = {}
        for set_, values in known.items():
            of_study.setdefault(set_.rsplit("-", 1)[0], []).append(statistics.mean(values))
        means = [statistics.mean(values) for values in of_study.values()]
        p = f"{ttest_1samp(means, 0.0).pvalue:.2f}" if len(means) > 2 else "–"
        each = ", ".join(f"{set_} {mean_and_error(values)}" for set_, values in known.items())
        lines.append(_line([f"{a} − {b}", mean_and_error(means), p, each]))
    return "\n".join(lines) if len(lines) > 2 else ""


def sets_of(scores: Scores) -> list[str]:
    """By the study's name, then by how many of its scans have labels."""
    return sorted({set_ for set_, _ in scores}, key=lambda set_: (set_.rsplit("-", 1)[0], int(set_.rsplit("-", 1)[1])))


def variants_of(scores: Scores) -> list[str]:
    """What names of arms have behind the arm, ", deeplabv3" for one, the usual "" first."""
    return sorted({arm.removeprefix(arm.split(",")[0]) for _, arm in scores})


def claims(scores: Scores) -> str:
    """Each arm that learns from more than labels beside `supervised` with the same scans, from three seeds on.

    Means and SDs over the seeds that both have, points of Dice with their standard error, and p of a paired t-test.
    """
    head = ["data, labelled", "arm", "seeds", "Dice, supervised", "Dice, arm", "points", "p", "better in"]
    lines = [_line(head), "|" + "---|" * len(head)]
    for set_, of, arm in product(sets_of(scores), variants_of(scores), JOINT):
        points = paired(scores, set_, arm + of, "supervised" + of)
        if len(points) < FEWEST_SEEDS:
            continue
        plain, mine = scores[set_, "supervised" + of], scores[set_, arm + of]
        both = plain.keys() & mine.keys()
        cells = [mean_and_spread([values[seed] for seed in both]) for values in (plain, mine)]
        p, better = ttest_1samp(points, 0.0).pvalue, sum(value > 0 for value in points)
        cells += [mean_and_error(points), f"{p:.2f}" if p >= 0.01 else "< 0.01", f"{better} of {len(points)}"]
        lines.append(_line([set_, arm + of, str(len(points)), *cells]))
    return "\n".join(lines) if len(lines) > 2 else ""


def paired(scores: Scores, set_: str, a: str, b: str) -> list[float]:
    """Points, one for each seed that both arms have."""
    mine, other = scores.get((set_, a), {}), scores.get((set_, b), {})
    return [100 * (mine[seed] - other[seed]) for seed in sorted(mine.keys() & other.keys())]


def efficiency(scores: Scores) -> str:
    """What an arm reaches with the fewest labels, and what that is worth, where `supervised` was trained with more.

    Worth in labels that `supervised` needs for the same, and as the share of the distance that more labels close.
    """
    head = ["data", "labelled", "arm", "Dice, supervised", "Dice, arm", "labels supervised needs for it"]
    head += ["Dice, supervised with most labels", "distance closed"]
    lines = [_line(head), "|" + "---|" * len(head)]
    curves: dict[tuple[str, str], dict[int, float]] = {}
    variants = variants_of(scores)
    for (set_, arm), seeds in scores.items():
        if (of := arm.removeprefix("supervised")) in variants and "+" not in set_:
            name, count = set_.rsplit("-", 1)
            curves.setdefault((name, of), {})[int(count)] = statistics.mean(seeds.values())
    for ((name, of), curve), arm in product(curves.items(), JOINT):
        few, most = min(curve), max(curve)
        gains = paired(scores, f"{name}-{few}", arm + of, "supervised" + of)
        if few == most or not gains:
            continue
        reached = curve[few] + statistics.mean(gains) / 100
        closed = (reached - curve[few]) / (curve[most] - curve[few]) if curve[most] > curve[few] else None
        cells = [f"{curve[few]:.3f}", f"{reached:.3f}", labels_for(curve, reached), f"{curve[most]:.3f} ({most})"]
        lines.append(_line([name, str(few), arm + of, *cells, "–" if closed is None else f"{closed:.0%}"]))
    return "\n".join(lines) if len(lines) > 2 else ""


def labels_for(curve: dict[int, float], dice: float) -> str:
    """How many labels reach this Dice, between two counts straight over their logarithm."""
    counts = sorted(curve)
    if dice <= curve[counts[0]]:
        return f"≤ {counts[0]}"
    for less, more in pairwise(counts):
        if curve[less] < dice <= curve[more]:
            share = (dice - curve[less]) / (curve[more] - curve[less])
            return f"{less * (more / less) ** share:.1f}"
    return f"> {counts[-1]}"


def mean_and_spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def mean_and_error(values: Sequence[float]) -> str:
    if not values:
        return "–"
    error = f" ({statistics.stdev(values) / len(values) ** 0.5:.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{error}".replace("-", "−")


def place(page: Path, name: str) -> tuple[str, str]:
    """The page's text up to `<!-- matrix NAME -->` and from the next `<!-- end -->` on, both marks included."""
    found = re.fullmatch(f"(.*<!-- matrix {name} -->).*?(<!-- end -->.*)", page.read_text(encoding="utf-8"), re.S)
    if found is None:
        raise ValueError(f"{page} has no lines '<!-- matrix {name} -->' and '<!-- end -->' to write between.")
    return found[1], found[2]


def write(rows: Sequence[Row], page: Path, name: str) -> None:
    """Replace what stands at the `place`; plots go to figures/ beside the page."""
    if not rows:
        raise ValueError(f"There are no rows of the grid '{name}' to write to {page}.")
    folder = page.parent / "figures"
    folder.mkdir(exist_ok=True)
    made = []
    for length, mine, heading in _lengths(rows):
        made += [heading, *_tables(mine)]
        for plot in (plot_differences, plot_labels):
            file = folder / f"{name}-{length}-{plot.__name__.removeprefix('plot_')}.svg"
            if caption := plot(mine, file):
                made.append(f"![{caption}](figures/{file.name})")
    before, behind = place(page, name)
    page.write_text("\n\n".join([before, *made, behind]), encoding="utf-8")


def plot_differences(rows: Sequence[Row], out: Path) -> str:
    """Each arm against `supervised` with the same segmenter: dots are seeds, the bar is the mean."""
    from matplotlib.figure import Figure

    groups = _over_supervised(scores_of(rows))
    if not groups:
        return ""
    height = sum(len(arms) + 1 for arms in groups.values())  # in lines, one of them between two groups
    figure = Figure(figsize=(8, 1.1 + 0.15 * height), layout="constrained")
    axes, y, ticks, told = figure.add_subplot(), 0, [], set()
    for number, arms in enumerate(groups.values()):
        axes.axhspan(y - 1, y + len(arms), color="#f2f2f2" if number % 2 else "white", zorder=0)
        ticks.append(y + (len(arms) - 1) / 2)
        for arm, points in arms.items():
            axes.plot(points, [y] * len(points), ".", color=COLOURS[arm], alpha=0.5, markersize=4)
            bar = {"markersize": 9, "markeredgewidth": 2.5, "label": None if arm in told else arm}
            axes.plot(statistics.mean(points), y, "|", color=COLOURS[arm], **bar)
            told.add(arm)
            y += 1
        y += 1
    axes.axvline(0, color="#444444", linewidth=0.8)
    axes.set(yticks=ticks, yticklabels=groups, xlabel="points of Dice over supervised", ylim=(y - 1, -1))
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=len(told))
    _save(figure, out)
    return "Points of Dice that each arm is above supervised, a dot for each seed, a bar for their mean"


def _over_supervised(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """Points of each arm that has any, under the set and what of the arm is not the default."""
    arms = [arm for arm in COLOURS if arm != "supervised"]
    groups = {
        set_ + of: {arm: points for arm in arms if (points := paired(scores, set_, arm + of, "supervised" + of))}
        for set_, of in product(sets_of(scores), variants_of(scores))
    }
    return {name: points for name, points in groups.items() if points}


def plot_labels(rows: Sequence[Row], out: Path) -> str:
    """Dice against the number of labelled scans, where `supervised` was trained with several."""
    from matplotlib.figure import Figure

    found = _by_labels(scores_of(rows))
    if not found:
        return ""
    across = min(len(found), PANELS)
    down = -(-len(found) // across)
    figure = Figure(figsize=(1.2 + 2.6 * across, 2.8 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).flat
    for (name, arms), axes in zip(found.items(), panels, strict=False):
        for arm, dice in arms.items():
            x = sorted(dice)
            axes.plot(x, [dice[n] for n in x], "o-", color=COLOURS[arm], markersize=3)
        counts = sorted({n for dice in arms.values() for n in dice})
        axes.set(title=name, xlabel="labelled", xscale="log", xticks=counts, xticklabels=counts)
        axes.minorticks_off()
    for unused in panels:
        unused.remove()
    figure.axes[0].set_ylabel("Dice")
    for arm in COLOURS:
        if any(arm in arms for arms in found.values()):
            axes.plot([], [], "o-", color=COLOURS[arm], markersize=3, label=arm)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    _save(figure, out)
    return "Dice against the number of labelled scans, of the joint arms by their difference from supervised"


def _by_labels(scores: Scores) -> dict[str, dict[str, dict[int, float]]]:
    """Study, arm, number of labelled scans: mean Dice of `supervised`, or what an arm differs from it in pairs on top.

    An arm's own mean would lie too high or too low where it has fewer seeds.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for set_, of in product(sets_of(scores), variants_of(scores)):
        plain = scores.get((set_, "supervised" + of))
        if plain is None or "+" in set_:
            continue
        name, count = set_.rsplit("-", 1)
        for arm in ("supervised", *JOINT):
            if gains := paired(scores, set_, arm + of, "supervised" + of):
                dice = statistics.mean(plain.values()) + statistics.mean(gains) / 100
                found.setdefault(name + of, {}).setdefault(arm, {})[int(count)] = dice
    return {name: arms for name, arms in found.items() if len(arms["supervised"]) > 1}


def _save(figure: "object", out: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "genseg", "svg.fonttype": "none"}):
        figure.savefig(out, metadata={"Date": None})  # type: ignore[attr-defined]


def _order(key: tuple[str, str]) -> tuple[str, int, str]:
    arm = key[1].split(",")[0]
    return key[0], ARMS.index(arm) if arm in ARMS else len(ARMS), key[1]


def _mean(rows: Sequence[Row], field: str, digits: int) -> str:
    return f"{_average(rows, field):.{digits}f}" if any(row[field] for row in rows) else "–"


def _average(rows: Sequence[Row], field: str) -> float:
    return statistics.mean(float(row[field]) for row in rows if row[field])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
