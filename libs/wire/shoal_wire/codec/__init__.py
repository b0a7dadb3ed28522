"""protobuf ↔ core types: `records`, `answers`, `filters`, `ranking`, `leaves`, `reads`, `log`, `catalog`, `public`, `common`.

``decode_x`` undoes ``encode_x``. Decoding what a client sent raises `InvalidArgument` naming the field at fault.
"""
