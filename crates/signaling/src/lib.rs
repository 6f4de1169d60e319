//! Doorbells and waiting: wake a sleeping process through a descriptor, and notice a dead one.
