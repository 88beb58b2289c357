//! Perplexity of the bundled model over the bundled text, as `omnictl bench --perplexity` computes it.
