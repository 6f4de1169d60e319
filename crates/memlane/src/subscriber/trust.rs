/// Of a subscriber to a publisher whose code may be anything: messages are copied out.
#[derive(Clone, Copy, Debug)]
pub enum Untrusted {}

/// Of a subscriber to a publisher that the user vouches for: messages are slices, too.
#[derive(Clone, Copy, Debug)]
pub enum Trusted {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Untrusted {}
    impl Sealed for super::Trusted {}
}

/// [`Untrusted`] or [`Trusted`].
pub trait Trust: sealed::Sealed {
    #[doc(hidden)]
    const TRUSTED: bool;
}

impl Trust for Untrusted {
    const TRUSTED: bool = false;
}

impl Trust for Trusted {
    const TRUSTED: bool = true;
}
