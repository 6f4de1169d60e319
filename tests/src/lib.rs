//! Tests that cross crates and processes.
