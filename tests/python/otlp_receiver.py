"""An OpenTelemetry collector, over gRPC and over HTTP, by PyPI's opentelemetry-proto and grpcio: no code of ours reads what nodes send.

Prints where it listens (a line of JSON: "grpc" and "http"), and then a line of JSON for every export: who sent it, how, and what. A line
on standard input is answered by `null`, behind every export that has been answered before.

With the files of a certificate, its key and a CA as arguments it speaks TLS alone, and listens to whoever shows a certificate of that CA.
"""

import json
import os
import ssl
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Whom it refuses is what tests are about, and not for their output.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

LOCK = threading.Lock()


def value(any_value):
    """What an attribute says, whatever its type is."""
    return getattr(any_value, any_value.WhichOneof("value"))


def attributes(pairs):
    return {pair.key: value(pair.value) for pair in pairs}


def span(found, scope):
    return {
        "trace": found.trace_id.hex(),
        "span": found.span_id.hex(),
        "parent": found.parent_span_id.hex(),
        "name": found.name,
        "kind": found.kind,
        "scope": scope,
        "begin": found.start_time_unix_nano,
        "end": found.end_time_unix_nano,
        "attributes": attributes(found.attributes),
        "links": [link.trace_id.hex() for link in found.links],
        "error": found.status.code == 2,
    }


def spans(request):
    for resource in request.resource_spans:
        found = [span(one, scope.scope.name) for scope in resource.scope_spans for one in scope.spans]
        yield resource.resource, found


def metrics(request):
    for resource in request.resource_metrics:
        yield resource.resource, [one.name for scope in resource.scope_metrics for one in scope.metrics]


def lines(request):
    for resource in request.resource_logs:
        found = [
            {
                "body": value(one.body),
                "severity": one.severity_text,
                "number": one.severity_number,
                "attributes": attributes(one.attributes),
            }
            for scope in resource.scope_logs
            for one in scope.log_records
        ]
        yield resource.resource, found


def tell(signal, protocol, exports):
    for resource, found in exports:
        line = {"signal": signal, "protocol": protocol, "resource": attributes(resource.attributes), "found": found}
        with LOCK:
            print(json.dumps(line), flush=True)


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def Export(self, request, context):
        tell("traces", "grpc", spans(request))
        return trace_service_pb2.ExportTraceServiceResponse()


class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        tell("metrics", "grpc", metrics(request))
        return metrics_service_pb2.ExportMetricsServiceResponse()


class Logs(logs_service_pb2_grpc.LogsServiceServicer):
    def Export(self, request, context):
        tell("logs", "grpc", lines(request))
        return logs_service_pb2.ExportLogsServiceResponse()


HTTP = {
    "/v1/traces": ("traces", trace_service_pb2.ExportTraceServiceRequest, spans),
    "/v1/metrics": ("metrics", metrics_service_pb2.ExportMetricsServiceRequest, metrics),
    "/v1/logs": ("logs", logs_service_pb2.ExportLogsServiceRequest, lines),
}


class Web(ThreadingHTTPServer):
    # All of a run's processes may connect at once, at their end. Who finds no room waits a second, and then three.
    request_queue_size = 128


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signal, kind, read = HTTP[self.path]
        request = kind()
        request.ParseFromString(body)
        tell(signal, "http", read(request))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def main():
    secured = [open(path, "rb").read() for path in sys.argv[1:4]]
    rpc = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Traces(), rpc)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Metrics(), rpc)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), rpc)
    web = Web(("127.0.0.1", 0), Http)
    if secured:
        certificate, key, ca = secured
        port = rpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)], ca, True))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[1], sys.argv[2])
        context.load_verify_locations(sys.argv[3])
        context.verify_mode = ssl.CERT_REQUIRED
        # Whoever does not end its handshake holds up its own thread.
        web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
        web.handle_error = lambda *_: None
    else:
        port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    threading.Thread(target=web.serve_forever, daemon=True).start()
    scheme = "https" if secured else "http"
    addresses = {"grpc": f"{scheme}://127.0.0.1:{port}", "http": f"{scheme}://127.0.0.1:{web.server_address[1]}"}
    print(json.dumps(addresses), flush=True)
    # Ends with the test: its end closes this pipe.
    for _ in sys.stdin:
        with LOCK:
            print("null", flush=True)


main()
