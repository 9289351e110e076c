"""What TensorBoard reads of a run: one JSON object with the scalars and histograms in the folder that is named, by PyPI's tensorboard,
which shares no code with what wrote them: as its page reads them (\"plugin\"), and as its own older loader does."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginAccumulator
from tensorboard.util import tensor_util

EVERYTHING = {"scalars": 0, "histograms": 0, "tensors": 0}

events = EventAccumulator(sys.argv[1], size_guidance=EVERYTHING)
events.Reload()
tags = events.Tags()
scalars = {tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in tags["scalars"]}


def histogram(event):
    value = event.histogram_value
    return {
        "step": event.step,
        "min": value.min,
        "max": value.max,
        "num": value.num,
        "sum": value.sum,
        "limits": list(value.bucket_limit),
        "counts": list(value.bucket),
    }


histograms = {tag: [histogram(e) for e in events.Histograms(tag)] for tag in tags["histograms"]}


def by_plugins():
    """Everything is a tensor there, of the plugin that shows it: a number, or rows of left, right and count."""
    found = PluginAccumulator(sys.argv[1], size_guidance=EVERYTHING)
    found.Reload()
    told = {}
    for tag in found.Tags()["tensors"]:
        plugin = found.SummaryMetadata(tag).plugin_data.plugin_name
        points = [[e.step, tensor_util.make_ndarray(e.tensor_proto).tolist()] for e in found.Tensors(tag)]
        told.setdefault(plugin, {})[tag] = points
    return told


print(json.dumps({"version": events.file_version, "scalars": scalars, "histograms": histograms, "plugins": by_plugins()}))
