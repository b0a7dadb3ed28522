"""``python -m bench``: the WordNet benchmark, or another one by its name, such as ``filters``: see ``OTHERS``."""

import sys

from bench import (
    churn,
    closure,
    embedding,
    engines,
    failover,
    filters,
    functions,
    gateway,
    memory,
    overhead,
    tail,
    telemetry,
    wordnet,
)

OTHERS = {
    "filters": filters.main,
    "functions": functions.main,
    "http": gateway.main,
    "embedding": embedding.main,
    "engines": engines.main,
    "churn": churn.main,
    "closure": closure.main,
    "memory": memory.main,
    "telemetry": telemetry.main,
    "failover": failover.main,
    "tail": tail.main,
    "overhead": overhead.main,
}

if (main := OTHERS.get(sys.argv[1] if len(sys.argv) > 1 else "")) is not None:
    main(sys.argv[2:])
else:
    wordnet.main()
