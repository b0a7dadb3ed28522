"""``python -m bench``: the WordNet benchmark; ``filters``: filters beside DuckDB; ``http``: the gateway beside a Chroma server."""

import sys

from bench import filters, gateway, wordnet

if sys.argv[1:2] == ["filters"]:
    filters.main(sys.argv[2:])
elif sys.argv[1:2] == ["http"]:
    gateway.main(sys.argv[2:])
else:
    wordnet.main()
