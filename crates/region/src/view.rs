//! Bytes as values of plain types: in place where nobody else writes, copied where somebody may.

use std::{any::type_name, io, ops::Range};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::LiveView;

/// Bytes seen in place as values of a plain type, by methods on `[u8]`, and so on [`Region`](crate::Region),
/// [`Frozen`](crate::Frozen), [`Live`](crate::Live), and whatever else dereferences to bytes.
///
/// Which types are plain is zerocopy's to say: those for which every pattern of bits is a value
/// ([`zerocopy::FromBytes`], to be derived), so that no sender can make an invalid one. For a `bool`, a `char` or an
/// `enum`, view the number, and convert it. Offsets are in bytes, and must be such that the values are aligned: the
/// beginning of a region is, to a page.
///
/// ```
/// use memlane_region::{Region, TypedBytes};
/// use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};
///
/// #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
/// #[repr(C)]
/// struct Header {
///     width: u32,
///     height: u32,
/// }
///
/// let mut region = Region::create("frame", 4096)?;
/// *region.view_mut::<Header>(0)? = Header { width: 4, height: 2 };
/// region.view_slice_mut::<u16>(size_of::<Header>(), 8)?.fill(0x7fff);
///
/// let frozen = region.freeze()?;
/// let header = frozen.view::<Header>(0)?;
/// let pixels = header.width as usize * header.height as usize;
/// assert_eq!(frozen.view_slice::<u16>(size_of::<Header>(), pixels)?, [0x7fff; 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// What has invalid values is no plain type:
///
/// ```compile_fail,E0277
/// use memlane_region::{Frozen, TypedBytes};
///
/// fn flag(frozen: &Frozen) -> &bool {
///     frozen.view::<bool>(0).unwrap()
/// }
/// ```
pub trait TypedBytes {
    /// The value at `offset`.
    ///
    /// # Errors
    ///
    /// [`ViewError::OutOfBounds`], [`ViewError::Unaligned`].
    fn view<T>(&self, offset: usize) -> Result<&T, ViewError>
    where
        T: FromBytes + Immutable + KnownLayout;

    /// The value at `offset`, to be written in place.
    ///
    /// # Errors
    ///
    /// [`ViewError::OutOfBounds`], [`ViewError::Unaligned`].
    fn view_mut<T>(&mut self, offset: usize) -> Result<&mut T, ViewError>
    where
        T: FromBytes + IntoBytes + KnownLayout;

    /// `count` values, the first one at `offset`.
    ///
    /// # Errors
    ///
    /// [`ViewError::OutOfBounds`], [`ViewError::Unaligned`].
    fn view_slice<T>(&self, offset: usize, count: usize) -> Result<&[T], ViewError>
    where
        T: FromBytes + Immutable + KnownLayout;

    /// `count` values, the first one at `offset`, to be written in place.
    ///
    /// # Errors
    ///
    /// [`ViewError::OutOfBounds`], [`ViewError::Unaligned`].
    fn view_slice_mut<T>(&mut self, offset: usize, count: usize) -> Result<&mut [T], ViewError>
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout;
}

impl TypedBytes for [u8] {
    #[inline]
    fn view<T>(&self, offset: usize) -> Result<&T, ViewError>
    where
        T: FromBytes + Immutable + KnownLayout,
    {
        let bytes = &self[range::<T>(self.len(), offset, 1)?];
        let unaligned = unaligned::<T>(bytes, offset);
        T::ref_from_bytes(bytes).map_err(|_| unaligned)
    }

    #[inline]
    fn view_mut<T>(&mut self, offset: usize) -> Result<&mut T, ViewError>
    where
        T: FromBytes + IntoBytes + KnownLayout,
    {
        let range = range::<T>(self.len(), offset, 1)?;
        let bytes = &mut self[range];
        let unaligned = unaligned::<T>(bytes, offset);
        T::mut_from_bytes(bytes).map_err(|_| unaligned)
    }

    #[inline]
    fn view_slice<T>(&self, offset: usize, count: usize) -> Result<&[T], ViewError>
    where
        T: FromBytes + Immutable + KnownLayout,
    {
        let bytes = &self[range::<T>(self.len(), offset, count)?];
        let unaligned = unaligned::<T>(bytes, offset);
        <[T]>::ref_from_bytes_with_elems(bytes, count).map_err(|_| unaligned)
    }

    #[inline]
    fn view_slice_mut<T>(&mut self, offset: usize, count: usize) -> Result<&mut [T], ViewError>
    where
        T: FromBytes + IntoBytes + Immutable + KnownLayout,
    {
        let range = range::<T>(self.len(), offset, count)?;
        let bytes = &mut self[range];
        let unaligned = unaligned::<T>(bytes, offset);
        <[T]>::mut_from_bytes_with_elems(bytes, count).map_err(|_| unaligned)
    }
}

/// Values of plain types, copied out.
impl LiveView {
    /// Copies a value out, from `offset` on, which need not be aligned. Its bytes are read once, so what is checked
    /// afterwards is what is used; if the maker writes meanwhile, it may be a mixture, but it is a `T`.
    ///
    /// ```
    /// use memlane_region::{LiveView, Region, TypedBytes};
    /// # use std::os::fd::AsFd;
    ///
    /// let mut live = Region::create("gauge", 4096)?.share()?;
    /// *live.view_mut::<f64>(8)? = 37.2;
    /// let view = LiveView::open(live.as_fd().try_clone_to_owned()?, 1 << 20)?;
    /// assert_eq!(view.read_as::<f64>(8)?, 37.2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ViewError::OutOfBounds`].
    #[inline]
    pub fn read_as<T: FromBytes>(&self, offset: usize) -> Result<T, ViewError> {
        range::<T>(self.len(), offset, 1)?;
        let value = T::read_from_io(At { view: self, offset });
        Ok(value.expect("a read of mapped memory does not fail"))
    }

    /// Copies values out into `dst`, from `offset` on, as [`read_as`](LiveView::read_as) does one.
    ///
    /// # Errors
    ///
    /// [`ViewError::OutOfBounds`], with `dst` as it was.
    #[inline]
    pub fn read_slice_as<T>(&self, offset: usize, dst: &mut [T]) -> Result<(), ViewError>
    where
        T: FromBytes + IntoBytes,
    {
        range::<T>(self.len(), offset, dst.len())?;
        self.read(offset, dst.as_mut_bytes());
        Ok(())
    }
}

/// A place in a view, to read on from.
struct At<'a> {
    view: &'a LiveView,
    offset: usize,
}

impl io::Read for At<'_> {
    #[inline]
    fn read(&mut self, dst: &mut [u8]) -> io::Result<usize> {
        self.view.read(self.offset, dst);
        self.offset += dst.len();
        Ok(dst.len())
    }
}

/// Where `count` values of `T` from `offset` on lie in `len` bytes.
#[inline]
fn range<T>(len: usize, offset: usize, count: usize) -> Result<Range<usize>, ViewError> {
    let end = size_of::<T>()
        .checked_mul(count)
        .and_then(|size| size.checked_add(offset));
    match end {
        Some(end) if end <= len => Ok(offset..end),
        _ => Err(ViewError::OutOfBounds {
            type_name: type_name::<T>(),
            size: size_of::<T>(),
            count,
            offset,
            len,
        }),
    }
}

/// What is wrong with `bytes`, which are at `offset` and as long as they have to be, if they are not aligned.
#[inline]
fn unaligned<T>(bytes: &[u8], offset: usize) -> ViewError {
    ViewError::Unaligned {
        type_name: type_name::<T>(),
        alignment: align_of::<T>(),
        offset,
        remainder: bytes.as_ptr().addr() % align_of::<T>(),
    }
}

/// Why bytes cannot be seen as values of a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The values would end behind the last byte.
    #[error(
        "expected {count} of {type_name}, of {size} bytes each, at byte {offset}, got {len} bytes in all"
    )]
    OutOfBounds {
        /// The type.
        type_name: &'static str,
        /// Its size, in bytes.
        size: usize,
        /// How many were asked for.
        count: usize,
        /// Where the first one was to be, in bytes.
        offset: usize,
        /// Length of what it was to be in, in bytes.
        len: usize,
    },
    /// The address is not one that a reference to such a value can have.
    #[error(
        "expected {type_name} at a multiple of {alignment} bytes, got byte {offset}, whose address is {remainder} more than one"
    )]
    Unaligned {
        /// The type.
        type_name: &'static str,
        /// Its alignment, in bytes.
        alignment: usize,
        /// Where it was to be, in bytes.
        offset: usize,
        /// The address modulo the alignment.
        remainder: usize,
    },
}
