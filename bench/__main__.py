"""``python -m bench``: the WordNet benchmark."""

from bench.wordnet import main

main()
