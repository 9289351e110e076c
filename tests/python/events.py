"""What TensorBoard reads of a run: one JSON object with the scalars and histograms in the folder that is named, by PyPI's tensorboard,
which shares no code with what wrote them."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVERYTHING = {"scalars": 0, "histograms": 0}

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
print(json.dumps({"version": events.file_version, "scalars": scalars, "histograms": histograms}))
