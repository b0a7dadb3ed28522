"""A collector that takes everything and keeps nothing, as a process of its own. It prints where it listens."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

_SERVICES = (
    "opentelemetry.proto.collector.trace.v1.TraceService",
    "opentelemetry.proto.collector.metrics.v1.MetricsService",
)


async def _take(data: bytes, context: object) -> bytes:
    return b""


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    for service in _SERVICES:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_take)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"http://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
