//! Runnable programs, each with real processes.
