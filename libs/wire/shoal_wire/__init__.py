"""The wire: generated protobuf code, its translation to core types and back, errors as gRPC status, clients."""
