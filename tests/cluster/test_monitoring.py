"""What operators watch exists and is true.

A real Prometheus scrapes real runs and answers every query of the dashboard and the alerts.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import ray
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES
from support import ROOT, free_port, read_output

from resunet_ray.data.images import encode_png
from resunet_ray.data.synthetic import generate_image, write_images
from resunet_ray.train.tracking import read_history

MONITORING = ROOT / "cluster" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "resunet_ray.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]

NOT_HERE = {
    "ray_node_gpus_utilization": "a GPU",
    "ray_node_gram_used": "a GPU",
    "ray_node_failure_total": "a node that was lost",
}
"""Ray's metrics that are missing here, and what they need."""

_WORDS = "and or unless by on without ignoring offset bool group_left group_right"
_FAST = {
    "RAY_ADDRESS": "local",
    "RAY_metrics_report_interval_ms": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "1000",
}

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="no prometheus here: metrics, dashboard and alerts were not checked",
    ),
]


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus server on loopback."""

    port: int

    def get(self, path: str, **parameters: str | float) -> Any:
        """Return the answer of its API, or fail the test on an error."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return the current values by their label values, ordered by label name."""
        found = self.get("query", query=expression)["result"]
        return {
            tuple(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in found
        }

    def values(self, expression: str, *, seconds: float) -> list[float]:
        """Return all values of the last seconds."""
        now = time.time()
        found = self.get("query_range", query=expression, start=now - seconds, end=now, step=1)[
            "result"
        ]
        return [float(value) for series in found for _, value in series["values"]]


@dataclass(frozen=True)
class Watched:
    """The runs, and the Prometheus that watched them."""

    prometheus: Prometheus
    folder: Path
    segmented: dict[str, dict[str, Any]]
    """The results of the runs `list` and `möre`."""
    begun: float

    def label(self, name: str) -> str:
        """Return the label `output` of a run. Ray accepts only ASCII."""
        return str(self.folder / name).replace("ö", r"\xf6")

    @property
    def known(self) -> set[str]:
        """The names of all metrics that were scraped or computed."""
        return set(self.prometheus.get("label/__name__/values"))


@pytest.fixture(scope="module")
def watched(bundle_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Finished runs whose Ray is still up.

    They segmented good, bad and missing images and one that killed an actor, and trained.
    """
    folder, begun = tmp_path_factory.mktemp("watched"), time.time()
    write_inputs(folder)
    command = [sys.executable, str(Path(__file__).with_name("watched.py")), bundle_uri, str(folder)]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **_FAST},
        ) as runs,
    ):
        assert runs.stdout is not None
        assert runs.stdin is not None
        too_long = threading.Timer(900, runs.terminate)
        too_long.start()
        discovery = (
            Path(read_line(runs.stdout, log=folder / "log")["session"])
            / "prom_metrics_service_discovery.json"
        )
        with start_prometheus(folder / "prometheus", discovery=discovery) as prometheus:
            segmented = read_line(runs.stdout, log=folder / "log")
            images = sum(sum(run["images"].values()) for run in segmented.values())
            wait_until(
                lambda: (
                    sum(prometheus.query("ray_resunet_segment_images_total").values()) == images
                ),
                what="all images",
            )
            too_long.cancel()
            yield Watched(prometheus, folder, segmented, begun)
        runs.stdin.close()


def write_inputs(folder: Path) -> None:
    write_images(str(folder / "pairs"), count=20, height=96, width=112, seed=3)
    good = sorted((folder / "pairs" / "images").iterdir())
    good[5].with_suffix(".mortal").touch()
    slow, _ = generate_image(
        300, 400, modality="stained", num_nuclei=60, rng=np.random.default_rng(1)
    )
    (folder / "slow.png").write_bytes(encode_png(slow))
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"hello, this is text")
    bad = [folder / "zero.png", folder / "text.png", folder / "gone.png", "ftp://lab/a.png"]
    (folder / "list.csv").write_text(
        "\n".join(["uri", *map(str, [*good[:17], *bad, folder / "slow.png"])])
    )
    (folder / "möre.csv").write_text("\n".join(["uri", *map(str, good[17:])]))


def read_line(stream: IO[str], *, log: Path) -> dict[str, Any]:
    """Return the next line of JSON. Ray prints other lines."""
    for line in stream:
        if line.startswith("{"):
            return dict(json.loads(line))
    pytest.fail(f"the process ended: {log.read_text()[-3000:]}")


@contextmanager
def start_prometheus(folder: Path, *, discovery: Path) -> Iterator[Prometheus]:
    """Start Prometheus with our configuration and rules, but faster and for this test's Ray."""
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["file_sd_configs"] = [
        {"files": [str(discovery)], "refresh_interval": "1s"}
    ]
    folder.mkdir()
    shutil.copy(MONITORING / "alerts.yaml", folder)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as server,
    ):
        try:
            wait_until(lambda: answers(port) or server.poll() is not None, what="Prometheus")
            assert server.poll() is None, (folder / "log").read_text()
            yield Prometheus(port)
        finally:
            server.terminate()


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1)
    except OSError:
        return False
    return True


def wait_until(condition: Any, *, what: str) -> None:
    for _ in range(120):
        if condition():
            return
        time.sleep(0.5)
    pytest.fail(f"a minute was not enough for {what}")


def metrics_of(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression.

    They are what remains without strings, selectors, ranges, labels, functions and keywords.
    """
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    bare = re.sub(r"\boffset\s+\w+", " ", bare)
    names = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", bare)
    return set(names) - set(_WORDS.split())


def unknown_metrics(expression: str, *, known: Iterable[str]) -> set[str]:
    return metrics_of(expression) - set(known) - set(NOT_HERE)


def test_each_panel_shows_data_and_has_a_unit_and_a_description(watched: Watched) -> None:
    seconds = time.time() - watched.begun
    for panel in PANELS:
        title = panel["title"]
        assert panel["description"], title
        assert panel["fieldConfig"]["defaults"]["unit"], title
        for target in panel["targets"]:
            query = target["expr"].replace("$__range", f"{seconds:.0f}s").replace("$output", ".*")
            assert "$" not in query, (
                f"{title}: the query has a variable that the test does not replace"
            )
            assert not unknown_metrics(query, known=watched.known), f"{title}: {query}"
            found = (
                list(watched.prometheus.query(query).values())
                if target.get("instant")
                else watched.prometheus.values(query, seconds=seconds)
            )
            if not metrics_of(query) & set(NOT_HERE):
                assert any(math.isfinite(value) for value in found), (
                    f"{title} shows nothing: {query}"
                )


def test_the_dashboard_offers_every_output(watched: Watched) -> None:
    (variable,) = (
        variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "output"
    )
    selector, label = re.fullmatch(
        r"label_values\((.*), (\w+)\)", variable["query"]["query"]
    ).groups()  # type: ignore[union-attr]
    outputs = watched.prometheus.get(f"label/{label}/values", **{"match[]": selector})
    assert outputs == sorted(watched.label(name) for name in ("list", "möre", "trained"))


def test_each_rule_queries_metrics_that_exist(watched: Watched) -> None:
    for rule in RULES:
        watched.prometheus.query(rule["expr"])
        assert not unknown_metrics(rule["expr"], known=watched.known), rule
    states = {
        rule["name"]: rule["health"]
        for group in watched.prometheus.get("rules")["groups"]
        for rule in group["rules"]
    }
    assert states == {rule.get("alert", rule.get("record")): "ok" for rule in RULES}


def test_a_misspelt_metric_is_found(watched: Watched) -> None:
    """Even if the query still returns something."""
    for query in [target["expr"] for panel in PANELS for target in panel["targets"]] + [
        rule["expr"] for rule in RULES
    ]:
        for name in metrics_of(query):
            assert f"{name[:-1]}" in unknown_metrics(
                re.sub(rf"\b{name}\b", name[:-1], query), known=watched.known
            ), query
    query = (
        'sum(rate(ray_resunet_segment_regoins_total{status="ok"}[5m] offset 1h)) by (run)'
        " or on (ip) vector(0) > 1e3"
    )
    assert metrics_of(query) == {"ray_resunet_segment_regoins_total"}


def test_ray_has_the_metrics_that_this_machine_cannot_show() -> None:
    server = Path(ray.__file__).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    for name in NOT_HERE:
        own = name.removeprefix("ray_")
        assert own in METRICS_GAUGES or own.encode() in server.read_bytes(), (
            f"Ray has no metric {own}"
        )


def test_the_counters_match_the_results_of_the_runs(watched: Watched) -> None:
    """Although an actor died in the middle of a chunk."""
    assert not list(watched.folder.rglob("*.mortal"))
    ask = watched.prometheus.query
    regions = {
        name: read_output(str(watched.folder / name), "regions") for name in watched.segmented
    }
    for name, run in watched.segmented.items():
        of_run = f'{{output={json.dumps(watched.label(name))}, run="{run["run_id"]}"}}'
        images = ask(f"sum by (status) (ray_resunet_segment_images_total{of_run})")
        assert images == {(status,): count for status, count in run["images"].items()}
        table = regions[name].fillna({"error_stage": "", "error_type": ""})
        (megapixels,) = ask(f"sum(ray_resunet_segment_megapixels_total{of_run})").values()
        assert megapixels == pytest.approx(table["pixels"].sum() / 1e6)
        reasons = Counter(
            zip(table["error_stage"], table["error_type"], table["status"], strict=True)
        )
        # Prometheus treats an empty label as missing.
        assert ask(
            f"sum by (error_stage, error_type, status) (ray_resunet_segment_regions_total{of_run})"
        ) == {tuple(value for value in reason if value): count for reason, count in reasons.items()}
        seconds = ask(f"sum by (stage) (ray_resunet_segment_seconds_total{of_run})")
        assert seconds == pytest.approx(
            {(stage,): run["seconds"][stage] for stage in ("read", "model", "post")}, abs=1e-3
        )
        (networks,) = ask(f"sum(ray_resunet_segment_network_seconds_total{of_run})").values()
        assert seconds["model",] / networks == pytest.approx(run["model_busy_fraction"], abs=1e-4)
    assert watched.segmented["list"]["images"] == {"ok": 18, "failed": 4}
    assert set(regions["list"]["error_stage"].dropna()) == {"list", "decode"}, (
        "images that fail before they are read must count too"
    )


def test_the_dashboard_s_failure_table_counts_each_failure_once(watched: Watched) -> None:
    (panel,) = (panel for panel in PANELS if panel["title"] == "Failures, by reason")
    (target,) = panel["targets"]
    found = watched.prometheus.query(
        target["expr"].replace("$__range", "10m").replace("$output", ".*")
    )
    output = str(watched.folder / "list")
    assert found == {
        ("decode", "ImageError", output): 2,
        ("list", "InputError", output): 1,
        ("list", "UnclearError", output): 1,
    }


def test_the_training_metrics_match_the_history(watched: Watched) -> None:
    history = read_history(str(watched.folder / "trained" / "train" / "history.csv"))
    labels, seconds = (
        f'output="{watched.label("trained")}", run="train"',
        time.time() - watched.begun,
    )
    for metric, written in {
        f"ray_resunet_train_epoch{{{labels}}}": [0, *history["epoch"]],
        f"ray_resunet_train_loss{{{labels}}}": history["train_loss"],
        f"ray_resunet_train_images_per_second{{{labels}}}": history["images_per_second"],
        f'ray_resunet_train_validation{{{labels}, score="f1"}}': history["val_f1"].dropna(),
    }.items():
        seen = set(watched.prometheus.values(metric, seconds=seconds))
        assert seen, metric
        assert all(np.isclose(value, written).any() for value in seen), metric


def test_the_gauges_disappear_when_a_run_is_done(watched: Watched) -> None:
    """Although its driver and its Ray are still alive."""
    names = ("segment_chunks_left", "segment_waiting", "train_epoch", "train_loss")
    gauges = " or ".join(f"ray_resunet_{name}" for name in names)
    wait_until(lambda: not watched.prometheus.query(gauges), what="the gauges to disappear")
    assert (
        max(
            watched.prometheus.values(
                "ray_resunet_segment_chunks_left", seconds=time.time() - watched.begun
            )
        )
        == 2
    )


def test_without_ray_metrics_do_nothing() -> None:
    code = """
from resunet_ray.monitoring import Run, count_images, show_training
with show_training(Run("ö", "train"), {"epoch": 1, "val_f1": 0.5}):
    count_images(Run("ö", "1"), {"ok": 1, "failed": 0})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prometheus_accepts_the_configuration() -> None:
    for kind, file in (("config", "prometheus.yaml"), ("rules", "alerts.yaml")):
        done = subprocess.run(
            ["promtool", "check", kind, str(MONITORING / file)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    alerts = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)  # otherwise each test would have to repeat them
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(alerts))
    shutil.copy(Path(__file__).with_name("alerts_test.yaml"), tmp_path)
    done = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tests = yaml.safe_load((tmp_path / "alerts_test.yaml").read_text())["tests"]
    tried = {
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in tests
        for case in test["alert_rule_test"]
    }
    assert tried == {
        (rule["alert"], fires) for rule in RULES if "alert" in rule for fires in (True, False)
    }
