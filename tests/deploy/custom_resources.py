"""What the chart uses of custom resources, as JSON Schemas: the fields that their documentation names, and no others."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string", "minLength": 1}
_TEXTS: Schema = {"type": "object", "additionalProperties": _TEXT}


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


def _resource(spec: Schema) -> Schema:
    metadata = _object(("name", "namespace", "labels"), name=_TEXT, namespace=_TEXT, labels=_TEXTS, annotations=_TEXTS)
    return _object(("metadata", "spec"), apiVersion=_TEXT, kind=_TEXT, metadata=metadata, spec=spec)


_DURATION: Schema = {"type": "string", "pattern": r"^([0-9]+(h|m|s))+$"}
_USAGES: Schema = {"enum": ["digital signature", "server auth", "client auth"]}

_CERTIFICATE = _object(
    ("secretName", "dnsNames", "issuerRef"),
    secretName=_TEXT,
    duration=_DURATION,
    renewBefore=_DURATION,
    privateKey=_object(
        ("algorithm",),
        algorithm={"enum": ["ECDSA"]},
        size={"enum": [256, 384, 521]},
        rotationPolicy={"enum": ["Always", "Never"]},
    ),
    usages=_list(_USAGES),
    dnsNames=_list(_TEXT),
    issuerRef=_object(("name",), name=_TEXT, kind=_TEXT, group=_TEXT),
)

_POD_MONITOR = _object(
    ("selector", "podMetricsEndpoints"),
    selector=_object(("matchLabels",), matchLabels=_TEXTS),
    podMetricsEndpoints=_list(
        _object(
            ("port",),
            port=_TEXT,
            interval=_DURATION,
            scheme={"enum": ["http", "https"]},
            tlsConfig=_object(
                (),
                serverName=_TEXT,
                ca=_object(("secret",), secret=_object(("name", "key"), name=_TEXT, key=_TEXT)),
            ),
        )
    ),
)

_RULE = _object(
    ("expr",), alert=_TEXT, record=_TEXT, expr=_TEXT, labels=_TEXTS, annotations=_TEXTS, **{"for": _DURATION}
)
_PROMETHEUS_RULE = _object(
    ("groups",), groups=_list(_object(("name", "rules"), name=_TEXT, interval=_DURATION, rules=_list(_RULE)))
)

CUSTOM_RESOURCES: dict[tuple[str, str], Schema] = {
    ("cert-manager.io/v1", "Certificate"): _resource(_CERTIFICATE),
    ("monitoring.coreos.com/v1", "PodMonitor"): _resource(_POD_MONITOR),
    ("monitoring.coreos.com/v1", "PrometheusRule"): _resource(_PROMETHEUS_RULE),
}
