"""The report: one self-contained page, pictures first, every number with how it was made."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simulacra import shelf
from simulacra.evaluation.features import DESCRIPTION
from simulacra.evaluation.reading import Reading
from simulacra.evaluation.verdict import verdicts
from simulacra.files import read_json, write_bytes
from simulacra.runs.curves import Curve, chart
from simulacra.runs.judging import FEATURES, Judgement
from simulacra.runs.ledger import read_ledger

REPORT = "report.html"

STYLE = """
:root{--ink:#1c2128;--soft:#5d6772;--line:#dfe4ea;--paper:#fff;--wash:#f5f7f9;--mark:#0b6e4f}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaef;--soft:#9aa5b1;--line:#333b45;--paper:#15191e;
--wash:#1d232a;--mark:#5fd3a8}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif}main{max-width:1240px;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 .75rem}
p{margin:.4rem 0}.soft{color:var(--soft)}.cards{display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(230px,1fr))}figure{margin:0}
figure img{width:100%;image-rendering:pixelated;border:1px solid var(--line);border-radius:6px;
background:#fff;cursor:zoom-in}figcaption{font-size:.9rem;margin-top:.3rem}
figcaption b{font-size:1rem}.verdict{border-left:3px solid var(--mark);background:var(--wash);
padding:.7rem .9rem;border-radius:0 6px 6px 0}.verdict b{display:block}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;width:100%}
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper)}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;min-width:6.5rem;
cursor:pointer}td small{color:var(--soft);display:block}td[title],th[title]{cursor:help}
code{background:var(--wash);padding:.15rem .35rem;border-radius:4px;overflow-wrap:anywhere}
svg{max-width:100%;height:auto}svg text{fill:var(--soft);font:12px system-ui,sans-serif}
svg .axis{stroke:var(--line)}dialog{border:0;padding:0;background:transparent;max-width:96vw}
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


def write_report(out: Path, models: Sequence[str], facts: Mapping[str, Any]) -> Path:
    """Write the page of a comparison from its folders; ``facts`` are plan, data, machine, failures."""
    judgements = {name: Judgement.read(out / name) for name in models}
    readings = {name: list(one.readings) for name, one in judgements.items()}
    cards = {name: shelf.read_card(out / name) for name in models}
    parts = [
        _head(facts),
        _verdicts(readings),
        _pictures(out, models, cards),
        _table(readings),
        _curves(out, models),
        _made(facts, cards, judgements, out),
    ]
    body = "\n".join(parts)
    title = f"Simulacra: {facts['plan']['data']}"
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style><main>{body}</main><dialog><img alt='enlarged'></dialog>"
        f"<script>{SCRIPT}</script></html>\n"
    )
    write_bytes(out / REPORT, page.encode())
    return out / REPORT


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _head(facts: Mapping[str, Any]) -> str:
    plan, data = facts["plan"], facts["data"]
    counts = f"{data['train']:,} train, {data['valid']:,} validation, {data['test']:,} test"
    return (
        f"<h1>{len(plan['models'])} generative models on {_text(Path(plan['data']).name)}</h1>"
        f"<p class=soft>{_text(plan['budget'])} of training each, seed {plan['seed']}, on the same "
        f"split: {counts}. Pictures enlarge when clicked; numbers say how they were made when "
        "hovered; columns sort when clicked.</p>"
    )


def _verdicts(readings: Mapping[str, list[Reading]]) -> str:
    told = "".join(
        f"<div class=verdict><b>{_text(one.use)}</b>{_text(one.text)}</div>"
        for one in verdicts(readings)
    )
    return f"<h2>Which one for what</h2><div class=cards>{told}</div>"


def _pictures(out: Path, models: Sequence[str], cards: Mapping[str, Any]) -> str:
    figures = [_figure(out / "real.png", "real data", "held-out test images")]
    for name in models:
        family = shelf.find(name).family
        picture = out / name / "samples.png"
        words = f"{family}, {cards[name]['parameters']:,} parameters"
        figures.append(_figure(picture, name, words))
    shown = "".join(figure for figure in figures if figure)
    return f"<h2>Real data and samples</h2><div class=cards>{shown}</div>" if shown else ""


def _figure(path: Path, name: str, words: str) -> str:
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{_text(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption><b>{_text(name)}</b> <span class=soft>{_text(words)}</span></figcaption></figure>"
    )


def _table(readings: Mapping[str, list[Reading]]) -> str:
    names = list(dict.fromkeys(one.name for several in readings.values() for one in several))
    first = {one.name: one for several in reversed(list(readings.values())) for one in several}
    heads = "".join(_column(first[name]) for name in names)
    rows = []
    for model, several in readings.items():
        by_name = {one.name: one for one in several}
        cells = "".join(_cell(by_name.get(name)) for name in names)
        rows.append(f"<tr><td><b>{_text(model)}</b></td>{cells}</tr>")
    return (
        "<h2>The ruler</h2><p class=soft>= exact, ≤ a bound (the true value is at most this), "
        "≈ an estimate; below each value its 95 % interval and count. An empty cell: the model cannot "
        "say. Different kinds are not ranked as one.</p><div class=wide><table class=sort><thead><tr>"
        f"<th>model</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _column(one: Reading) -> str:
    arrow = "↓" if one.better == "lower" else "↑"
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
    return (
        f'<td data-v="{one.value:.8g}" title="{_text(one.how)} (seed {one.seed}, {_text(one.split)})">'
        f"{sign}{one.value:.4g}<small>{interval}n={count}</small></td>"
    )


def _curves(out: Path, models: Sequence[str]) -> str:
    held_out, losses = [], []
    for name in models:
        lines = read_ledger(out / name)
        held_out.append(_curve(name, lines, "held-out bits/dim"))
        for key in dict.fromkeys(key for line in lines for key in line if key.endswith("loss")):
            label = name if key == "loss" else f"{name} {key.removesuffix('/loss')}"
            losses.append(_curve(label, lines, key))
    charts = [
        chart([curve for curve in held_out if curve], "held-out bits/dim over training seconds"),
        chart([curve for curve in losses if curve], "training loss over training seconds"),
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
        items += [f"{_text(name)}, warning: {_text(one)}" for one in numbers["warnings"]]
    items += [f"{_text(name)}: {_text(why)}" for name, why in facts["failures"].items()]
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<h2>How this was made</h2><ul class=soft>{listed}</ul>"
