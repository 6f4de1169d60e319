//! Benchmarks: criterion for the pieces, two pinned processes for the whole.
