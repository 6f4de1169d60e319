//! Unix sockets that carry typed messages and descriptors: SCM_RIGHTS without loss, leak or surprise.
