"""The report: one self-contained page, pictures first, every number with how it was made."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulacra import shelf
from simulacra.contract import Sampler
from simulacra.evaluation.features import DESCRIPTION
from simulacra.evaluation.ladder import Ladder
from simulacra.evaluation.reading import Reading
from simulacra.evaluation.verdict import Verdict
from simulacra.files import read_json, write_bytes
from simulacra.runs.curves import Curve, chart
from simulacra.runs.exhibits import Exhibit
from simulacra.runs.judging import FEATURES, Judgement, ladder_of
from simulacra.runs.ledger import read_ledger
from simulacra.runs.pictures import embedded

REPORT = "report.html"
PICTURE, REBUILT = "samples.png", "reconstructions.png"
DRAWS = "draws.png"
"""Samples as they are drawn and judged, of a model whose picture shows their means."""
MEANS = "means of p(x|z); numbers are of draws, which scatter about them"
ABOVE = "each datum, and below it what its code gives back"
FREE = "free parameters"
"""What models that are no network call the number of their free parameters, among their diagnoses."""
APART, CHANCE = "distance of ", " (probability)"
"""How a number is called that says how far two probabilities are apart."""

STYLE = """
:root{--ink:#1c2128;--soft:#5d6772;--line:#dfe4ea;--paper:#fff;--wash:#f5f7f9;--mark:#0b6e4f}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaef;--soft:#9aa5b1;--line:#333b45;--paper:#15191e;
--wash:#1d232a;--mark:#5fd3a8}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}main{max-width:1240px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .75rem}
p{margin:.4rem 0}.soft{color:var(--soft)}.cards{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(230px,1fr))}figure{margin:0}
pre{white-space:pre-wrap;max-height:360px;overflow:auto;margin:0;font-size:12px}
figure img{width:100%;border:1px solid var(--line);border-radius:6px;
background:#fff;cursor:zoom-in}figcaption{font-size:.9rem;margin-top:.3rem}
figcaption b{font-size:1rem}.verdict{border-left:3px solid var(--mark);background:var(--wash);
padding:.7rem .9rem;border-radius:0 6px 6px 0}.verdict b{display:block}
.alarm{border-color:#c8553d;margin-top:1rem}.one td{white-space:normal}
.one td:nth-child(3){white-space:nowrap}.one td.how{min-width:26rem;text-align:left}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;width:100%}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;min-width:6.5rem;
cursor:pointer}td small{color:var(--soft);display:block}td[title],th[title]{cursor:help}
code{background:var(--wash);padding:.15rem .35rem;border-radius:4px;overflow-wrap:anywhere}
svg{max-width:100%;height:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
svg .axis{stroke:var(--line)}svg .named{fill:var(--ink);stroke:var(--paper)}
figure.broad{max-width:720px}dialog{border:0;padding:0;background:transparent;max-width:96vw}
dialog img{max-width:96vw;max-height:94vh;width:min(90vw,900px);image-rendering:pixelated}
dialog::backdrop{background:#000a}
"""

SCRIPT = """
const box=document.querySelector('dialog'),big=box.querySelector('img');
document.querySelectorAll('figure img').forEach(i=>i.onclick=()=>{big.src=i.src;box.showModal()});
box.onclick=()=>box.close();
document.querySelectorAll('table.sort th').forEach((th,n)=>th.onclick=()=>{
const body=th.closest('table').tBodies[0],rows=[...body.rows],up=th.dataset.up!=='1';
th.dataset.up=up?'1':'0';const key=r=>{const v=r.cells[n].dataset.v;
return v===undefined?(n?Infinity:r.cells[n].textContent):(up?1:-1)*v};
rows.sort((a,b)=>{const x=key(a),y=key(b);return x<y?-1:x>y?1:0});body.append(...rows)});
"""


def write_report(
    out: Path,
    folders: Mapping[str, Path],
    facts: Mapping[str, Any],
    judged: Mapping[str, Judgement],
    found: Sequence[Verdict],
) -> Path:
    """Write the page of a comparison from its models' folders.

    ``facts`` are plan, data, machine, failures, and of a conditional comparison, which models ran
    without the condition. ``judged`` is what each model came to, ``found`` what that says for each use.
    """
    readings = {name: list(one.readings) for name, one in judged.items()}
    cards = {name: shelf.read_card(folder) for name, folder in folders.items()}
    ladder = ladder_of(out)
    parts = [
        _head(facts),
        _failed(facts["failures"]),
        _self_test(ladder, only_failed=True),
        _verdicts(found),
        _pictures(out, folders, cards, judged, facts["failures"]),
        _table(readings, facts["failures"]),
        _free_parameters(cards, judged),
        _curves(folders),
        _made(facts, cards, judged, out),
        _self_test(ladder, only_failed=False),
    ]
    return _page(out / REPORT, f"Simulacra: {facts['plan']['data']}", parts)


def write_run_report(
    folder: Path, judgement: Judgement, ruler: Path, shows: Sequence[Exhibit] = ()
) -> Path:
    """Write the page of one run: its pictures, every reading with how it was made, its curves.

    ``shows`` are what the model has to show of its test data.
    """
    card = shelf.read_card(folder)
    numbers, recipe, data = card["numbers"], card["recipe"], card["data"]
    name, ladder = str(card["model"]), ladder_of(ruler)
    head = (
        f"<h1>{_text(name)} on {_text(data['name'])}</h1><p class=soft>"
        f"{_text(shelf.find(name).family)}, {card['parameters']:,} parameters, "
        f"{numbers['rounds']:,} rounds in {numbers['training_seconds']:.0f} s, seed "
        f"{recipe['seed']}. Pictures enlarge when clicked; numbers say how they were made when "
        "hovered; columns sort when clicked.</p>"
    )
    warned = "".join(f"<li>{_text(one)}</li>" for one in numbers["warnings"])
    pictures = sorted((folder / "pictures").glob("round-*.png"))
    chosen = [(path, f"round {int(path.stem.removeprefix('round-')):,}") for path in pictures]
    finished, told = "of the finished model", "from fixed seeds"
    means = (folder / DRAWS).is_file()
    if means:
        told = f"means of p(x|z), {told}"
    if not _samples(name):
        told = ABOVE
    shown = "".join(
        [_figure(folder / "real.png", "real data", "held-out")]
        + [_figure(folder / PICTURE, "samples", f"{finished}, {MEANS}" if means else finished)]
        + [_figure(folder / DRAWS, "draws of p(x)", f"{finished}, of the same seed")]
        + [_rebuilt(folder, name, "reconstructions", ABOVE)]
        + [_figure(path, words, told) for path, words in chosen]
    )
    parts = [
        head,
        f"<h2>While it trained</h2><ul>{warned}</ul>" if warned else "",
        _self_test(ladder, only_failed=True),
        f"<h2>Pictures</h2><div class=cards>{shown}</div>" if shown else "",
        *(_exhibit(one) for one in shows),
        _readings(judgement),
        _curves({name: folder}),
        _self_test(ladder, only_failed=False),
    ]
    return _page(folder / REPORT, f"Simulacra: {name}", parts)


def _page(path: Path, title: str, parts: Iterable[str]) -> Path:
    body = "\n".join(parts)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><main>{body}</main><dialog><img alt='enlarged'></dialog>"
        f"<script>{SCRIPT}</script></html>\n"
    )
    write_bytes(path, page.encode())
    return path


def _exhibit(one: Exhibit) -> str:
    return f"<h2>{_text(one.title)}</h2><p class=soft>{_text(one.words)}</p>{one.body}"


def _readings(judgement: Judgement) -> str:
    """One row a reading, for a single run."""
    rows = []
    for one in judgement.readings:
        sign = "" if one.kind is None else one.kind.sign + " "
        interval = ""
        if one.low is not None and one.high is not None:
            interval = f"{one.low:.4g} to {one.high:.4g}"
        unit = f"{one.unit}, " if one.unit else ""
        hover = f' title="{_text(_told(one))}"'
        others = "".join(
            f"<td{_sortable(value)}{'' if value is None else hover}>"
            f"{'' if value is None else f'{value:.4g}'}</td>"
            for value in (one.floor, one.control)
        )
        rows.append(
            f"<tr><td{hover}><b>{_text(one.name)}</b></td>"
            f"<td{_sortable(one.value)}{hover}>{sign}{one.value:.4g}"
            f"<small>{_text(unit)}{one.better} is better</small></td><td>{interval}</td>{others}"
            f"<td>{_text(one.counted)}<small>{_text(one.split)}, seed {one.seed}</small></td>"
            f"<td class=how>{_text(one.how)}<small>{_text(one.features)}</small></td></tr>"
        )
    told = "".join(
        f"<li>{_text(name)}: {value:.4g}</li>" for name, value in judgement.diagnoses.items()
    )
    refused = "".join(f"<li>{_text(line)}</li>" for line in judgement.refused)
    return (
        "<h2>The ruler</h2><p class=soft>= exact, ≤ a bound (the true value is at most this), ≈ an "
        "estimate.</p><div class=wide><table class='sort one'><thead><tr><th>reading</th><th>value</th>"
        "<th>95 %</th><th>real data</th><th>without a model</th><th>count</th><th>how</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        + (f"<ul class=soft>{refused}</ul>" if refused else "")
        + (f"<h2>What its own family asks</h2><ul class=soft>{told}</ul>" if told else "")
    )


def _sortable(value: float | None) -> str:
    return "" if value is None else f' data-v="{value:.8g}"'


def _self_test(ladder: Ladder | None, *, only_failed: bool) -> str:
    """The ruler's test of itself: a warning at the top where it failed, the whole at the end."""
    if ladder is None or (only_failed and ladder.passed):
        return ""
    lines = ladder.lines()
    if only_failed:
        failed = [line for line in lines if line.startswith("FAILED")]
        told = "".join(f"<li>{_text(line)}</li>" for line in failed)
        return (
            "<div class='verdict alarm'><b>The ruler failed its own test on these data</b>Distances "
            f"of samples cannot be believed here, and nobody is ranked by them.<ul>{told}</ul></div>"
        )
    listed = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<h2>The ruler's test of itself</h2><ul class=soft>{listed}</ul>"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _head(facts: Mapping[str, Any]) -> str:
    plan, data = facts["plan"], facts["data"]
    counts = f"{data['train']:,} train, {data['valid']:,} validation, {data['test']:,} test"
    number = len(plan["models"]) - len(facts["failures"])
    compared = f"{number or 'No'} generative model{'' if number == 1 else 's'}"
    return (
        f"<h1>{compared} on {_text(Path(plan['data']).name)}</h1>"
        f"<p class=soft>{_text(plan['budget'])} of training each, {_seeds(str(plan['seed']))}, on the "
        f"same split: {counts}. Pictures enlarge when clicked; numbers say how they were made when "
        f"hovered; columns sort when clicked.</p>{_without(facts)}"
    )


def _without(facts: Mapping[str, Any]) -> str:
    """Of a conditional comparison: which models ran without the condition."""
    names = ", ".join(facts.get("without the condition", ()))
    if not facts["plan"]["conditional"]:
        return ""
    told = (
        f"; these cannot take what the data go with, and ran without it: {names}" if names else ""
    )
    return f"<p class=soft>Conditional on what the data go with{_text(told)}.</p>"


def _failed(failures: Mapping[str, str]) -> str:
    """A warning at the top where models of the plan are not compared."""
    if not failures:
        return ""
    listed = "".join(f"<li>{_text(name)}: {_text(why)}</li>" for name, why in failures.items())
    told = (
        "1 model failed and is" if len(failures) == 1 else f"{len(failures)} models failed and are"
    )
    return f"<div class='verdict alarm'><b>{told} not compared here</b><ul>{listed}</ul></div>"


def _seeds(told: str) -> str:
    """Which seeds, and of several, what is shown of each."""
    first, *others = told.split(",")
    if not others:
        return f"seed {_text(told)}"
    listed = ", ".join(map(_text, (first, *others)))
    return (
        f"seeds {listed} (numbers are means over them, with the range and Student's 95 % interval; "
        f"pictures, curves and rounds are of seed {_text(first)})"
    )


def _verdicts(found: Sequence[Verdict]) -> str:
    told = "".join(
        f"<div class=verdict><b>{_text(one.use)}</b>{_text(one.text)}</div>" for one in found
    )
    return f"<h2>Which one for what</h2><div class=cards>{told}</div>"


def _parameters(card: Mapping[str, Any], judgement: Judgement) -> int:
    """Those of a network, or the free ones of a model that keeps its numbers in buffers."""
    return int(judgement.diagnoses.get(FREE, card["parameters"]))


def _pictures(
    out: Path,
    folders: Mapping[str, Path],
    cards: Mapping[str, Any],
    judged: Mapping[str, Judgement],
    failures: Mapping[str, str],
) -> str:
    figures = [_figure(out / "real.png", "real data", "held-out test data")]
    for name, folder in folders.items():
        family = shelf.find(name).family
        words = f"{family}, {_parameters(cards[name], judged[name]):,} parameters"
        told = f"{words}; {MEANS}" if (folder / DRAWS).is_file() else words
        figures.append(_figure(folder / PICTURE, name, told))
        figures.append(_rebuilt(folder, name, name, f"{words}; no samples: {ABOVE}"))
    figures += [
        f"<figure><pre>{_text(why)}</pre><figcaption><b>{_text(name)}</b> <span class=soft>failed"
        "</span></figcaption></figure>"
        for name, why in failures.items()
    ]
    shown = "".join(figure for figure in figures if figure)
    return f"<h2>Real data and samples</h2><div class=cards>{shown}</div>" if shown else ""


def _samples(model: str) -> bool:
    return issubclass(shelf.find(model).cls, Sampler)


def _rebuilt(folder: Path, model: str, name: str, words: str) -> str:
    """What came back of data, of a model without samples; of others such a file is a user's own."""
    return "" if _samples(model) else _figure(folder / REBUILT, name, words)


def _figure(path: Path, name: str, words: str) -> str:
    """A picture, or the text that stands in its place."""
    written = path.with_suffix(".txt")
    if written.is_file():
        shown = f"<pre>{_text(written.read_text(encoding='utf-8'))}</pre>"
    elif path.is_file():
        shown = embedded(path.read_bytes(), name)
    else:
        return ""
    return (
        f"<figure>{shown}"
        f"<figcaption><b>{_text(name)}</b> <span class=soft>{_text(words)}</span></figcaption></figure>"
    )


def _table(readings: Mapping[str, list[Reading]], failures: Mapping[str, str]) -> str:
    names = list(dict.fromkeys(one.name for several in readings.values() for one in several))
    first = {one.name: one for several in reversed(list(readings.values())) for one in several}
    heads = "".join(_column(first[name]) for name in names)
    rows = []
    for model, several in readings.items():
        by_name = {one.name: one for one in several}
        cells = "".join(_cell(by_name.get(name)) for name in names)
        rows.append(f"<tr><td><b>{_text(model)}</b></td>{cells}</tr>")
    empty = "<td></td>" * len(names)
    for model, why in failures.items():
        failed = f"<b>{_text(model)}</b><small>failed</small>"
        rows.append(f'<tr><td title="{_text(why)}">{failed}</td>{empty}</tr>')
    return (
        "<h2>The ruler</h2><p class=soft>= exact, ≤ a bound (the true value is at most this), "
        "≈ an estimate; below each value its 95 % interval and count. An empty cell: the model cannot "
        "say. Different kinds are not ranked as one.</p><div class=wide><table class=sort><thead><tr>"
        f"<th>model</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _column(one: Reading) -> str:
    arrow = {"lower": "↓", "higher": "↑", "nearer": "→"}[one.better]
    floor = "" if one.floor is None else f"<br>real: {one.floor:.3g}"
    unit = f"<br>{_text(one.unit)}" if one.unit else ""
    return f'<th title="{_text(one.how)}">{_text(one.name)} {arrow}{unit}{floor}</th>'


def _cell(one: Reading | None) -> str:
    if one is None:
        return "<td></td>"
    sign = "" if one.kind is None else one.kind.sign + " "
    count = (
        one.count if isinstance(one.count, int) else " / ".join(f"{n}" for n in one.count.values())
    )
    interval = ""
    if one.low is not None and one.high is not None:
        interval = f"{one.low:.4g} to {one.high:.4g}, "
    if one.each and min(one.each) == max(one.each):
        interval = "the same for all seeds, "
    elif one.each:
        interval = f"seeds {min(one.each):.4g} to {max(one.each):.4g}; {interval}"
    return (
        f'<td data-v="{one.value:.8g}" title="{_text(_told(one))}">'
        f"{sign}{one.value:.4g}<small>{interval}n={count}</small></td>"
    )


def _told(one: Reading) -> str:
    """How a number was made, in one sentence and its circumstances."""
    seen = f", features {one.features}" if one.features else ""
    return f"{one.how} ({one.counted}, {one.split}, seed {one.seed}{seen})"


def _free_parameters(cards: Mapping[str, Any], judged: Mapping[str, Judgement]) -> str:
    """Of binary data: how many numbers each model says p(x) with, beside the table of all states."""
    space: Mapping[str, Any] = next((card["space"] for card in cards.values()), {})
    shape = [space.get(key, 1) for key in ("channels", "height", "width", "length")]
    dimensions = math.prod(shape)
    if space.get("levels", space.get("vocabulary")) != 2 or dimensions < 2:
        return ""
    counted = {name: _parameters(card, judged[name]) for name, card in cards.items()}
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td{_sortable(count)}>{count:,}</td></tr>"
        for name, count in sorted(counted.items(), key=lambda one: one[1])
    )
    digits = math.floor(dimensions * math.log10(2)) + 1
    every = f"{2**dimensions - 1:,}" if digits < 16 else f"about 10<sup>{digits - 1}</sup>"
    return (
        "<h2>How many numbers p(x) takes</h2><p class=soft>A table of all states of "
        f"n = {dimensions:,} binary dimensions takes 2<sup>n</sup> - 1; independence takes n, a chain "
        "2n - 1.</p><div class=wide><table class=sort><thead><tr><th>model</th><th>free parameters</th>"
        f"</tr></thead><tbody>{rows}<tr><td>table of all states</td><td data-v='1e300'>{every}</td></tr>"
        "</tbody></table></div>"
    )


def _curves(folders: Mapping[str, Path]) -> str:
    held_out, losses, chances = [], [], []
    for name, folder in folders.items():
        lines = read_ledger(folder)
        held_out.append(_curve(name, lines, "held-out bits/dim"))
        for key in dict.fromkeys(key for line in lines for key in line if key.endswith("loss")):
            label = name if key == "loss" else f"{name} {key.removesuffix('/loss')}"
            losses.append(_curve(label, lines, key))
        for key in dict.fromkeys(key for line in lines for key in line if key.endswith(CHANCE)):
            label = key.removeprefix(APART).removesuffix(CHANCE)
            chances.append(_curve(label if len(folders) == 1 else f"{name} {label}", lines, key))
    charts = [
        chart([curve for curve in held_out if curve], "held-out bits/dim over training seconds"),
        chart([curve for curve in losses if curve], "training loss over training seconds"),
        chart(
            [curve for curve in chances if curve],
            "distances of probabilities over training seconds",
        ),
    ]
    figures = "".join(f"<figure>{one}</figure>" for one in charts if one)
    return f"<h2>Learning</h2>{figures}" if figures else ""


def _curve(name: str, lines: Iterable[Mapping[str, Any]], key: str) -> Curve | None:
    points = [(line["seconds"], line[key]) for line in lines if key in line]
    return Curve(name, points) if len(points) > 1 else None


def _made(
    facts: Mapping[str, Any],
    cards: Mapping[str, Any],
    judgements: Mapping[str, Judgement],
    out: Path,
) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    items = [
        f"Command: <code>{_text(facts['command'])}</code>",
        f"Data: {_text(facts['data']['name'])}, fingerprint "
        f"<code>{_text(facts['data']['fingerprint'][:16])}</code>",
        f"Machine: {_text(machine)}",
    ]
    ruler = out / FEATURES / DESCRIPTION
    if ruler.is_file():
        net = read_json(ruler)
        seen = (
            f"{net['dimension']} features of kind '{net['kind']}', trained on {net['trained_on']}"
        )
        sure = (
            "" if net["accuracy"] is None else f", accuracy {net['accuracy']:.1%} on held-out data"
        )
        weights = f"weights <code>{_text(net['sha256'][:16])}</code>"
        items.append(f"The ruler's eyes: {_text(seen + sure)}, {weights}")
    for name, card in cards.items():
        numbers = card["numbers"]
        items.append(
            f"{_text(name)}: {numbers['rounds']:,} rounds, {numbers['examples']:,} examples in "
            f"{numbers['training_seconds']:.0f} s, {numbers['precision']}; settings "
            f"{_text(card['config'])}"
        )
        told = ", ".join(f"{key} {value:.4g}" for key, value in judgements[name].diagnoses.items())
        items += [f"{_text(name)}: {_text(told)}"] if told else []
        items += [f"{_text(name)}: {_text(line)}" for line in judgements[name].refused]
        items += [f"{_text(name)}, warning: {_text(one)}" for one in numbers["warnings"]]
    items += [f"{_text(name)} failed: {_text(why)}" for name, why in facts["failures"].items()]
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>How this was made</h2><ul class=soft>{listed}</ul>"
