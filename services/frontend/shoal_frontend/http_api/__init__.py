"""The HTTP gateway: the reference system's REST API over the public verbs, so that its unmodified clients work.

`app` puts it together and `serving` serves it; `catalog_routes`, `record_routes` and `conditional_routes` answer, from JSON (`bodies`,
`matrices`, `records`, `vectors`, `reads`, `conditional`) to JSON (`answers`, `pieces`, `shapes`), which `sending` sends; `errors` says
what an error looks like.
"""
