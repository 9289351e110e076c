"""A collector of OpenTelemetry metrics over OTLP/HTTP, by PyPI's opentelemetry-proto: no code of ours reads what nodes send.

Prints where it listens, and then a line of JSON for every export: the node, what posted it, and the metrics as the protocol's own
messages have them. A line on standard input is answered by `null`, behind every export that has been answered before.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

LOCK = threading.Lock()


def value(any_value):
    """What an attribute says, whatever its type is."""
    return getattr(any_value, any_value.WhichOneof("value"))


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


def metric(found):
    """One metric: its name, unit and kind, and its series."""
    kind = found.WhichOneof("data")
    data = getattr(found, kind)
    if kind == "sum":
        # 2 is AGGREGATION_TEMPORALITY_CUMULATIVE.
        kind = ("counter" if data.is_monotonic else "updowncounter") if data.aggregation_temporality == 2 else "delta"
    return {
        "name": found.name,
        "unit": found.unit,
        "description": found.description,
        "kind": kind,
        "points": [
            {"attributes": attributes(point.attributes), "value": getattr(point, point.WhichOneof("value"))}
            for point in data.data_points
        ],
    }


class Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        line = {"path": self.path, "type": self.headers["Content-Type"]}
        if self.path == "/v1/metrics":
            request = ExportMetricsServiceRequest()
            request.ParseFromString(body)
            line["exports"] = [
                {
                    "resource": attributes(resource.resource.attributes),
                    "metrics": [metric(m) for scope in resource.scope_metrics for m in scope.metrics],
                }
                for resource in request.resource_metrics
            ]
            with LOCK:
                print(json.dumps(line), flush=True)
        answer = ExportMetricsServiceResponse().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    # All of a run's processes may connect at once, at their end. Who finds no room waits a second, and then three.
    request_queue_size = 128


def main():
    server = Server(("127.0.0.1", 0), Collector)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    # Ends with the test: its end closes this pipe.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in sys.stdin:
        with LOCK:
            print("null", flush=True)


main()
