"""``python -m bench``: the WordNet benchmark; ``python -m bench filters``: filters beside DuckDB."""

import sys

from bench import filters, wordnet

if sys.argv[1:2] == ["filters"]:
    filters.main(sys.argv[2:])
else:
    wordnet.main()
