"""Networks, changes and runs as plain values, ready for a table or for JSON.

In: graphs, network files, checkpoints, runs. Out: dictionaries of literals.
"""

from dataclasses import replace
from math import isnan
from typing import Any, Final

from prunetrain.graph.costs import Costs, LayerCost, costs
from prunetrain.graph.layergraph import LayerGraph
from prunetrain.graph.load import read_graph
from prunetrain.paths import RunPaths
from prunetrain.report.history import History

_COMPARED: Final = ("channels", "macs", "params")  # of two networks


def network(graph: LayerGraph, dense: LayerGraph | None = None) -> dict[str, Any]:
    """Describe the layers and totals of a network, and what can be cut.

    `cuttable` holds the MACs in channels that can be cut and the fewest MACs that can be left, as numbers and as shares; `frozen` holds the
    channel spaces that cannot be cut.

    Args:
        graph: the network.
        dense: the network before any cut; adds `was` to each layer and shares to the totals.
    """
    from prunetrain.channels.coverage import measure_coverage
    from prunetrain.channels.spaces import find_spaces

    cost = costs(graph)
    before = costs(dense).layer_channels if dense else {}
    rows = [
        {
            "layer": row.name,
            "kind": row.kind,
            "output_shape": list(row.output_shape),
            "channels": row.channels,
            "was": before.get(row.name, row.channels),
            "macs": row.macs,
            "params": row.params,
        }
        for row in cost.layers
        if row.channels is not None
    ]
    coverage = measure_coverage(graph, find_spaces(graph))
    described: dict[str, Any] = {
        "network": graph.class_name,
        "input_shape": list(graph.input_shape),
        "layers": rows,
        "totals": totals(cost),
        "cuttable": {
            "macs": round(coverage.cuttable_macs),
            "share": round(coverage.share, 4),
            "least_macs": coverage.least_macs,
            "least_share": round(coverage.least_share, 6),
        },
        "frozen": [{"space": space.name, "channels": space.channels, "why": space.why} for space in coverage.spaces],
    }
    if dense is not None and dense != graph:
        described["dense_totals"] = totals(costs(dense))
    return described


def totals(cost: Costs) -> dict[str, int]:
    """The sums over a network: channels, MACs, parameters, and the activation elements of one image."""
    return {"channels": cost.channels, "macs": cost.macs, "params": cost.params, "activation_elements": cost.activation_elements}


def change(before: LayerGraph, after: LayerGraph) -> dict[str, Any]:
    """Describe what differs between two networks: channels, MACs and parameters of every layer that changed, and of the whole."""
    old, new = _by_layer(before), _by_layer(after)
    rows = []
    for name in [*old, *(name for name in new if name not in old)]:
        left, right = old.get(name), new.get(name)
        if left == right:
            continue
        rows.append({"layer": name} | {key: [_layer_value(row, key) for row in (left, right)] for key in _COMPARED})
    sums = [totals(costs(graph)) for graph in (before, after)]
    return {"layers": rows, "totals": {key: [one[key] for one in sums] for key in _COMPARED}}


def run_results(run: History) -> dict[str, Any]:
    """Describe the results of a run; None for values that its files do not hold."""
    return {
        "run": run.label,
        "epochs": run.epochs,
        "val_top1": None if isnan(run.top1) else run.top1,
        "macs": run.networks[-1].costs.macs if run.networks else None,
        "params": run.networks[-1].costs.params if run.networks else None,
        "nonzero_params": None if isnan(run.nonzero) else int(run.nonzero),
    }


def table_rows(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The table in one of these dictionaries, as rows of plain values with the same keys, ready for CSV.

    For a network: its layers. For a change: the layers that differ, with `..._before` and `..._after`. For a run: its epochs, or its
    networks if it has no metrics.
    """
    if "run" in described:
        lines = described["metrics"] or described["networks"]
        names = list(dict.fromkeys(name for line in lines for name in line))
        return [{name: line.get(name) for name in names} for line in lines]
    if "network" in described:
        return [row | {"output_shape": "x".join(map(str, row["output_shape"]))} for row in described["layers"]]
    moments = ("before", "after")
    return [
        {"layer": row["layer"]} | {f"{key}_{moment}": row[key][place] for key in _COMPARED for place, moment in enumerate(moments)}
        for row in described["layers"]
    ]


def _by_layer(graph: LayerGraph) -> dict[str, LayerCost]:
    """The costs of each layer that makes channels, by name, summed over its calls if there are several."""
    found: dict[str, LayerCost] = {}
    for row in costs(graph).layers:
        if row.channels is not None:
            before = found.get(row.name)
            found[row.name] = replace(before, macs=before.macs + row.macs) if before else row
    return found


def _layer_value(row: LayerCost | None, what: str) -> int:
    return getattr(row, what) or 0 if row else 0


def run(paths: RunPaths, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """Describe a run's history: its metrics, and the network after every reconfiguration.

    Raises:
        NetworkFileError: if one of its network files cannot be read.
    """
    files = paths.network_files()
    networks = [{"epoch": epoch, "file": str(path), **totals(costs(read_graph(path)))} for epoch, path in files.items()]
    return {"run": paths.name, "networks": networks, "metrics": metrics}
