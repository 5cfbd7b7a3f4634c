"""The tables of a record: of one that has just been made, or of one that was saved."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

OURS = ("reflectors", "small")
PEERS = ("qr", "jax.random", "jax.nn", "torch.linalg.qr", "torch.nn.init")


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints every section, and what is missing from it."""
    machine = report["machine"]
    console.print(f"{machine['accelerator']} ({machine['processor']}), driver {machine['driver']}, {machine['date']}")
    console.print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), style="dim")
    sections = report["sections"]
    makers = {
        "checks: law": _checks,
        "checks: numbers": _checks,
        "checks: methods": _checks,
        "ceilings": _ceilings,
        "haar": _haar,
        "haar, tuning": _times,
        "draws": _draws,
        "studies": _studies,
    }
    torch = next(iter(sections.get("torch", {}).get("rows", {}).values()), {}).get("contenders", {})
    for name, section in sections.items():
        rows = section["rows"]
        measured = {row: found for row, found in rows.items() if not {"skipped", "failed"} & found.keys()}
        if name != "torch" and measured:
            title = f"{name} ({section['seconds']:.0f} of {section['budget_s']:.0f} s)"
            console.print(makers.get(name, _times)(title, measured, torch))
        for row, reason in _missing(rows):
            console.print(f"{name}: {row}: {reason}", style="bold red", markup=False)
    compiled = report["compiled"]
    console.print(
        f"{report['seconds']:.0f} s in all, of which {compiled['compile_s']:.0f} s for {compiled['programs']} programs"
    )


def _missing(rows: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was skipped, failed or did not pass, contenders included."""
    for name, row in rows.items():
        for reason in ("skipped", "failed"):
            if reason in row:
                yield name, f"{reason}: {row[reason].strip().splitlines()[-1]}"
        for contender, found in row.get("contenders", {}).items():
            yield from _missing({f"{name}, {contender}": found})
        if row.get("passed") is False:
            yield name, "NOT PASSED"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _checks(title: str, rows: Mapping[str, Any], _: Any) -> Table:
    table = _table(title, "claim", "passed", "figure", "allowed", "p-value", "worst", "s")
    for name, row in rows.items():
        figure, allowed = row.get("error", row.get("largest")), row.get("allowed", row.get("tolerance"))
        cells = ["" if x is None else f"{x:.1e}" for x in (figure, allowed, row.get("p"))]
        worst = row.get("worst") or ", ".join(row.get("different", [])) or ", ".join(row.get("far", {}))
        passed = "yes" if row["passed"] else "[bold red]NO"
        table.add_row(name, passed, *cells, worst[:40].replace("[", r"\["), f"{row['seconds']:.1f}")
    return table


def _ceilings(title: str, rows: Mapping[str, Any], _: Any) -> Table:
    table = _table(title, "what", "figures")
    for name, row in rows.items():
        figures = {key: value for key, value in row.items() if key.endswith(("gb_s", "tflop_s"))}
        table.add_row(name, ", ".join(f"{key} {value:.0f}" for key, value in figures.items()))
    return table


def _time(row: Mapping[str, Any]) -> str:
    if "ms" not in row:
        return "–"
    queued = f" ({row['queued_ms']:.3f})" if "queued_ms" in row else ""
    return f"{row['ms']:.3f}{queued}"


def _best(found: Mapping[str, Any], names: Any, key: str) -> tuple[str, float] | None:
    """The fastest of these, by single calls (ms), or by calls in a queue if those were measured."""
    times = {name: found[name].get(key, found[name]["ms"]) for name in names if "ms" in found.get(name, {})}
    return min(times.items(), key=lambda pair: pair[1]) if times else None


def haar_ratios(row: Mapping[str, Any], torch: Mapping[str, Any] | None) -> dict[str, Any]:
    """Our fastest method, the fastest peer, and the peer's time over ours, timed in both ways."""
    found = {**row["contenders"], **(torch or {})}
    ratios: dict[str, Any] = {}
    for key in ("ms", "queued_ms"):
        ours, peer = _best(found, OURS, key), _best(found, PEERS, key)
        if ours and peer:
            ratios[key] = {"ours": ours[0], "peer": peer[0], "ratio": peer[1] / ours[1]}
    return ratios


def _haar(title: str, rows: Mapping[str, Any], torch: Mapping[str, Any]) -> Table:
    names = [*OURS, *PEERS, "numbers"]
    table = _table(f"{title}, ms (in a queue)", "shape", *names, "first: ours / jax", "auto", "best", "peer / best")
    for name, row in rows.items():
        found = {**row["contenders"], **torch.get(f"haar {name}", {})}
        ratios = haar_ratios(row, torch.get(f"haar {name}"))
        first = [found.get(which, {}).get("first_s") for which in (row["auto"], "jax.random")]
        firsts = " / ".join("–" if s is None else f"{s:.1f}" for s in first)
        cells = [_time(found.get(which, {})) for which in names]
        best = ratios.get("queued_ms", ratios.get("ms", {}))
        shown = " ".join(f"{r['ratio']:.1f}×" for r in ratios.values())
        table.add_row(name, *cells, f"{firsts} s", row["auto"], best.get("ours", "–"), shown)
    return table


def _draws(title: str, rows: Mapping[str, Any], torch: Mapping[str, Any]) -> Table:
    table = _table(f"{title}, ms and GB/s", "draw", "jaxinit", "jax.random", "torch")
    for name, row in rows.items():
        found = {**row["contenders"], **torch.get(name, {})}
        cells = []
        for side in ("jaxinit", "jax.random", "torch"):
            figures = found.get(side, {})
            rate = row["bytes"] / figures.get("queued_ms", figures["ms"]) * 1e-6 if "ms" in figures else None
            cells.append("–" if rate is None else f"{figures['ms']:.3f}, {rate:.0f}")
        table.add_row(name, *cells)
    return table


def _times(title: str, rows: Mapping[str, Any], _: Any) -> Table:
    table = _table(title, "what", "contender", "ms (in a queue)", "over", "first call, s", "over", "programs", "error")
    for name, row in rows.items():
        for contender, found in row["contenders"].items():
            over = [f"{found[key]:.2f}×" if key in found else "" for key in ("over", "first_over")]
            first = f"{found['first_s']:.2f}" if "first_s" in found else "–"
            programs, error = str(found.get("programs", "")), f"{found['error']:.0e}" if "error" in found else ""
            table.add_row(name, contender, _time(found), over[0], first, over[1], programs, error)
            name = ""
    return table


def _studies(title: str, rows: Mapping[str, Any], _: Any) -> Table:
    table = _table(title, "study", "seed-steps/s", "of a loop", "over", "first, s", "again, s", "loop, s")
    for name, row in rows.items():
        rates = [f"{row[key]:.0f}" for key in ("study_seed_steps_per_s", "loop_seed_steps_per_s")]
        seconds = [f"{row[key]:.2f}" for key in ("first_s", "again_s", "loop_s")]
        table.add_row(name, *rates, f"{row['study_over_loop']:.1f}×", *seconds)
    return table
