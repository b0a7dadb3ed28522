"""``python -m bench``: the WordNet benchmark; ``python -m bench filters``: filters beside DuckDB; ``functions``: statistics."""

import sys

from bench import filters, functions, wordnet

if sys.argv[1:2] == ["filters"]:
    filters.main(sys.argv[2:])
elif sys.argv[1:2] == ["functions"]:
    functions.main(sys.argv[2:])
else:
    wordnet.main()
