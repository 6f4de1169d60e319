//! Sealed shared memory on memfd: one writer per page, verified before it is mapped, and a ring in it.
