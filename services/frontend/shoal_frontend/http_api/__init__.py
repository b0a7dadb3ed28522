"""The HTTP gateway: the reference system's REST API over the public verbs, so that its unmodified clients work.

`app` puts it together and `serving` serves it; `catalog_routes` and `record_routes` answer, from JSON (`bodies`, `records`, `vectors`,
`reads`) to JSON (`answers`, `shapes`); `errors` says what an error looks like.
"""
