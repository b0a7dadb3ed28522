"""Text analysis: tokens, stems, stop words, and BM25 as sparse vectors."""
