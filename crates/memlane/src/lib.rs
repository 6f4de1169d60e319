//! Owned shared memory and the descriptors that wake it, handed between Linux processes: messages without copies and without system calls.
