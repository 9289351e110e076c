"""Reads YAML documents on standard input, checks each against Kubernetes' published schema, and prints them as one line of JSON.

The schemas are those of PyPI's kubernetes-validate, which refuse fields that are not in them.
"""

import json
import sys

import kubernetes_validate
import yaml

documents = list(yaml.safe_load_all(sys.stdin))
version = kubernetes_validate.latest_version()
for document in documents:
    kubernetes_validate.validate(document, version, strict=True)
print(json.dumps(documents))
