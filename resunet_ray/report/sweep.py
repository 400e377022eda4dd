"""The report of a sweep. It reads the sweep's tables and computes no score."""

import json
from typing import Any

import pandas as pd

from resunet_ray import storage
from resunet_ray.config import lower_is_better
from resunet_ray.report.page import REPORT_FILE, styled_figures, write_page
from resunet_ray.report.sweep_figures import (
    PREFIX,
    draw_coordinates,
    draw_curves,
    draw_importance,
    draw_progress,
    draw_scatter,
    format_value,
)
from resunet_ray.sweep.winner import SUMMARY_FILE, TABLE_FILE


@styled_figures
def write_sweep_report(output: str) -> str:
    """Write report.html beside a sweep's tables; returns its location."""
    output = storage.absolute(output)
    summary = json.loads(storage.read_bytes(storage.join(output, SUMMARY_FILE)))
    rows = storage.read_table(storage.join(output, TABLE_FILE)).to_pandas()
    names = [name.removeprefix(PREFIX) for name in rows.columns if name.startswith(PREFIX)]
    monitor, best = summary["monitor"], summary["best"]
    started = pd.Timestamp(rows["started_at"].min())
    finished = pd.to_datetime(rows["finished_at"], utc=True)
    rows["minutes"] = (finished - started).dt.total_seconds() / 60
    scored = rows[rows["score"].notna()]
    ended = scored[scored["minutes"].notna()]
    ranked = rows.sort_values(
        "score", ascending=lower_is_better(monitor), na_position="last", kind="stable"
    )
    return write_page(
        storage.join(output, REPORT_FILE),
        template="sweep.html",
        summary=summary,
        config=summary["config"],
        names=names,
        minutes=rows["minutes"].max(),
        winner={name: format_value(best["parameters"][name]) for name in names} if best else {},
        trials=[
            {**row, "parameters": [format_value(row[PREFIX + name]) for name in names]}
            for row in _records(ranked)
        ],
        progress=draw_progress(ended, monitor) if len(ended) else None,
        curves=draw_curves(output, monitor, winner=best and best["trial"]) if len(scored) else None,
        coordinates=draw_coordinates(scored, names, monitor) if len(scored) > 1 else None,
        scatter=draw_scatter(scored, names, monitor) if len(scored) else None,
        importance=draw_importance(summary["importance"]) if summary["importance"] else None,
    )


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain values, None where one is missing."""
    plain = rows.astype(object).where(rows.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]
