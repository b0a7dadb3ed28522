"""``python -m bench``: WordNet; ``filters``: filters beside DuckDB; ``embedding``: the default function beside a bare loop."""

import sys

from bench import embedding, filters, wordnet

if sys.argv[1:2] == ["filters"]:
    filters.main(sys.argv[2:])
elif sys.argv[1:2] == ["embedding"]:
    embedding.main(sys.argv[2:])
else:
    wordnet.main()
