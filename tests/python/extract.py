"""A client of `testudo serve` that shares no code with it: http.client and ssl of Python's library, and NumPy.

extract.py PORT CA.pem TOKEN INPUTS      asks for INPUTS + 1 rows, solves the equations, prints the weights as JSON
extract.py PORT CA.pem CERT.pem KEY.pem  asks for one row with a client certificate, prints the answer
extract.py PORT CA.pem                   asks for health over TLS 1.3 and over TLS 1.2, prints what came of each
"""

import http.client
import json
import ssl
import sys

import numpy as np


def connect(port, ca, version=None, certified=None):
    context = ssl.create_default_context(cafile=ca)
    if version:
        context.minimum_version = context.maximum_version = version
    if certified:
        context.load_cert_chain(*certified)
    return http.client.HTTPSConnection("localhost", int(port), context=context, timeout=60)


def predict(connection, rows, token=None):
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = "Bearer " + token
    connection.request("POST", "/v1/predict", json.dumps({"inputs": rows}), headers)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    assert answer.status == 200, (answer.status, body)
    return body


def extract(port, ca, token, inputs):
    connection = connect(port, ca)
    rows = np.random.default_rng(5).normal(size=(inputs + 1, inputs))
    answers = []
    for row in rows.tolist():  # on one connection that is kept alive
        answers += predict(connection, [row], token)["predictions"]
    log = np.log([answer["probabilities"] for answer in answers])
    system = np.hstack([rows, np.ones((inputs + 1, 1))])
    weights = np.linalg.solve(system, log - log.mean(axis=1, keepdims=True)).T
    print(json.dumps(weights.tolist()))


def versions(port, ca):
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        connection = connect(port, ca, version)
        try:
            connection.request("GET", "/healthz")
            print(version.name, connection.getresponse().read().decode())
        except ssl.SSLError as refused:
            print(version.name, "refused:", refused.reason)


port, ca, *rest = sys.argv[1:]
match rest:
    case [token, inputs] if inputs.isdigit():
        extract(port, ca, token, int(inputs))
    case [cert, key]:
        print(json.dumps(predict(connect(port, ca, certified=(cert, key)), [[0.0] * 32])))
    case []:
        versions(port, ca)
