use std::borrow::Cow;

/// How the memory of a region is made. A plain name is one, with defaults for the rest.
///
/// ```
/// use memlane_region::{Options, Region};
///
/// let plain = Region::create("frames", 1 << 20)?;
/// let ready = Region::create(Options::new("frames").prefault(true), 1 << 20)?;
/// # Ok::<(), memlane_region::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub(crate) name: Cow<'static, str>,
    pub(crate) prefault: bool,
}

impl Options {
    /// `name` shows up in `/proc/PID/maps` as `memfd:name`, nowhere else; at most 249 bytes of it
    /// (memfd_create(2)).
    pub fn new(name: impl Into<Cow<'static, str>>) -> Options {
        Options {
            name: name.into(),
            prefault: false,
        }
    }

    /// Touches every page at creation, so that no access pays for a page fault later (2.5 us each).
    pub fn prefault(self, prefault: bool) -> Options {
        Options { prefault, ..self }
    }
}

impl From<&'static str> for Options {
    fn from(name: &'static str) -> Options {
        Options::new(name)
    }
}

impl From<String> for Options {
    fn from(name: String) -> Options {
        Options::new(name)
    }
}

impl From<&Options> for Options {
    fn from(options: &Options) -> Options {
        options.clone()
    }
}
