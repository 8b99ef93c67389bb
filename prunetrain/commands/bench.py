"""`prunetrain bench`: how fast a network is on this machine, optionally layer by layer, or how two compare."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from prunetrain.commands.inspect import find_network_file
from prunetrain.commands.options import config_option, flag_settings, output_dir_option
from prunetrain.config import build_config
from prunetrain.graph.load import read_graph
from prunetrain.paths import find_run


@click.command("bench")
@click.argument("what", metavar="NET|CKPT|RUN")
@click.argument("other", required=False, metavar="[OTHER]")
@config_option("batch_size", help="Images per step.")
@config_option("amp")
@config_option("channels_last")
@config_option("compile")
@config_option("optimizer")
@config_option("device")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: torch's own]")
@click.option("--rounds", type=click.IntRange(1, 10_000), default=10, show_default=True, help="How often to time each network, in turn.")
@click.option("--layers", is_flag=True, help="Also time each step of the forward pass on its own, forward and backward.")
@output_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables; the keys name the units.")
def command(
    what: str, other: str | None, *, threads: int | None, rounds: int, layers: bool, output_dir: str, as_json: bool, **params: Any
) -> None:
    """Time training steps and inference of a network; show its peak memory and the group lasso's share of a step.

    With OTHER, or with a RUN (its dense and its newest network), compare two networks, timed in turn round after round: what share of the
    MACs that the second saves it also saves in time. Weights and images are random, and nothing is written.
    """
    paths = _networks(what, other, Path(output_dir))
    graphs = [read_graph(path) for path in paths]

    from prunetrain.report import benchmarks
    from prunetrain.training.benchmarking import allocator, conditions, measuring, peaks, profiling, steps
    from prunetrain.training.creation import check_batch
    from prunetrain.training.environment import choose_device

    config = build_config(flag_settings(params))
    setting = conditions.Conditions.of(config, choose_device(config))
    for path, graph in zip(paths, graphs, strict=True):
        check_batch(graph, setting.batch_size, str(path))
        steps.check_logits(graph, str(path))
    allocator.keep_freed_memory()
    with conditions.threads(threads), setting.explain_out_of_memory():
        measured = measuring.measure(graphs, setting, rounds=rounds)
        described: dict[str, Any] = {
            "machine": benchmarks.machine(setting, rounds),
            "networks": [benchmarks.network(str(p), g, m) for p, g, m in zip(paths, graphs, measured, strict=True)],
        }
        if len(graphs) > 1:
            described["comparison"] = benchmarks.comparison(graphs, measured)
        if layers:
            best = peaks.measure_peaks(setting)
            profiled = [benchmarks.layers(profile, best) for profile in profiling.profile_steps(graphs, setting, rounds=rounds)]
            described["peaks"] = asdict(best)
            described["profiles"] = [
                {"network": str(path), "layers": rows, "kinds": benchmarks.kinds(rows, best)}
                for path, rows in zip(paths, profiled, strict=True)
            ]
    if as_json:
        click.echo(json.dumps(described, indent=2))
        return
    from prunetrain.report.benchmark_tables import print_benchmark, print_layers
    from prunetrain.report.terminal import console

    print_benchmark(console(), described)
    if layers:
        print_layers(console(), described)


def _networks(what: str, other: str | None, output_dir: Path) -> list[Path]:
    """The network files to time: for a single run, the dense and the newest one."""
    run = find_run(what, output_dir)
    if run is not None and other is None:
        return list(dict.fromkeys([run.network(0), run.newest_network()]))
    return [_network(name, output_dir) for name in (what, other) if name is not None]


def _network(what: str, output_dir: Path) -> Path:
    run = find_run(what, output_dir)
    return run.newest_network() if run else find_network_file(Path(what), output_dir)
