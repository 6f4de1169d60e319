//! What the fuzz targets share.
//!
//! | module | |
//! |---|---|
//! | [`script`] | fuzzer's bytes to packets of a hostile peer |
//! | [`files`] | descriptors of every kind to attach to them |
//! | [`values`] | types to receive them as |
//! | [`census`] | nothing is left open, nothing large is allocated |

pub mod census;
pub mod files;
pub mod script;
pub mod values;
