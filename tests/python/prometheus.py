"""Reads metrics as Prometheus does, by PyPI's prometheus-client: one scrape of each URL on the command line.

Prints a line of JSON for each: by metric family its type, and its samples' names, labels and values.
"""

import json
import sys
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

for url in sys.argv[1:]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), answer.headers
        text = answer.read().decode()
    families = {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": [{"name": s.name, "labels": s.labels, "value": s.value} for s in family.samples],
        }
        for family in text_string_to_metric_families(text)
    }
    print(json.dumps(families), flush=True)
