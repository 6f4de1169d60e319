//! What the types rule out, one example each; the more telling ones are at the types themselves. Compiled by
//! `cargo test --doc` only. Each differs in one line from a program that compiles.

/// A region is gone once it is shared:
///
/// ```compile_fail,E0382
/// let mut region = memlane_region::Region::create("once", 1).unwrap();
/// let live = region.share().unwrap();
/// region[0] = 1;
/// ```
///
/// moved:
///
/// ```compile_fail,E0382
/// let mut region = memlane_region::Region::create("once", 1).unwrap();
/// let moved = region.into_moved();
/// region[0] = 1;
/// ```
///
/// or frozen, be it live before or not:
///
/// ```compile_fail,E0382
/// let live = memlane_region::Region::create("once", 1).unwrap().share_freezable().unwrap();
/// let frozen = live.freeze().unwrap();
/// live.len();
/// ```
///
/// What was claimed cannot be owned as well:
///
/// ```compile_fail,E0382
/// let moved = memlane_region::Region::create("once", 1).unwrap().into_moved();
/// let frozen = moved.claim(4096).unwrap();
/// let region = unsafe { moved.own(4096) };
/// ```
fn used_after_it_changed() {}

/// Frozen bytes are not written in place:
///
/// ```compile_fail,E0596
/// let mut frozen = memlane_region::Frozen::copy_of("answer", b"42").unwrap();
/// let bytes: &mut [u8] = &mut frozen;
/// ```
///
/// nor through a typed view:
///
/// ```compile_fail,E0596
/// use memlane_region::TypedBytes;
/// let mut frozen = memlane_region::Frozen::copy_of("answer", b"42").unwrap();
/// frozen.view_mut::<u8>(0).unwrap();
/// ```
///
/// Live bytes of a peer's are not borrowed:
///
/// ```compile_fail,E0308
/// fn borrow(view: &memlane_region::LiveView) -> &[u8] {
///     view
/// }
/// ```
///
/// nor written:
///
/// ```compile_fail,E0599
/// fn write(view: &mut memlane_region::LiveView) {
///     view.copy_from_slice(&[]);
/// }
/// ```
///
/// nor seen as values, without a promise:
///
/// ```compile_fail,E0599
/// use memlane_region::TypedBytes;
/// fn borrow(view: &memlane_region::LiveView) -> &u64 {
///     view.view::<u64>(0).unwrap()
/// }
/// ```
///
/// ```compile_fail,E0133
/// fn borrow(view: &memlane_region::LiveView) -> &[u8] {
///     view.bytes()
/// }
/// ```
fn borrowed_where_others_write() {}

/// A region's descriptor does not leave it:
///
/// ```compile_fail,E0277
/// fn send(fd: impl std::os::fd::AsFd) {}
/// send(memlane_region::Region::create("mine", 1).unwrap());
/// ```
///
/// neither do the parts of a region of which another may exist:
///
/// ```compile_fail,E0277
/// fn twice<T: Clone>(value: T) {}
/// twice(memlane_region::Region::create("mine", 1).unwrap());
/// ```
///
/// ```compile_fail,E0277
/// fn twice<T: Clone>(value: T) {}
/// twice(memlane_region::Region::create("mine", 1).unwrap().share().unwrap());
/// ```
///
/// A received region is made one's own by promise only:
///
/// ```compile_fail,E0133
/// fn own(moved: memlane_region::Moved) {
///     moved.own(4096).unwrap();
/// }
/// ```
fn owned_twice() {}

/// Borrows end with their region:
///
/// ```compile_fail,E0597
/// let bytes: &[u8] = {
///     let frozen = memlane_region::Frozen::copy_of("answer", b"42").unwrap();
///     &frozen
/// };
/// assert_eq!(bytes, b"42");
/// ```
///
/// ```compile_fail,E0505
/// use memlane_region::TypedBytes;
/// let frozen = memlane_region::Frozen::copy_of("answer", b"42").unwrap();
/// let word = frozen.view::<u16>(0).unwrap();
/// drop(frozen);
/// assert_eq!(*word, 0x3234);
/// ```
///
/// and a region is not frozen under one:
///
/// ```compile_fail,E0505
/// let mut region = memlane_region::Region::create("mine", 1).unwrap();
/// let bytes: &mut [u8] = &mut region;
/// let frozen = region.freeze().unwrap();
/// bytes[0] = 1;
/// ```
///
/// While it is looked at, it is not written:
///
/// ```compile_fail,E0502
/// use memlane_region::TypedBytes;
/// let mut region = memlane_region::Region::create("mine", 8).unwrap();
/// let seen = region.view::<u32>(0).unwrap();
/// *region.view_mut::<u32>(4).unwrap() = 1;
/// assert_eq!(*seen, 0);
/// ```
///
/// nor twice at a time:
///
/// ```compile_fail,E0499
/// use memlane_region::TypedBytes;
/// let mut region = memlane_region::Region::create("mine", 8).unwrap();
/// let one = region.view_mut::<u32>(0).unwrap();
/// let other = region.view_mut::<u32>(0).unwrap();
/// *one = *other;
/// ```
fn outlived_or_aliased() {}

/// Types with invalid values are not viewed, nor copied out of live memory:
///
/// ```compile_fail,E0277
/// use memlane_region::TypedBytes;
/// let frozen = memlane_region::Frozen::copy_of("bits", &[2; 8]).unwrap();
/// frozen.view::<char>(0).unwrap();
/// ```
///
/// ```compile_fail,E0277
/// use memlane_region::TypedBytes;
/// let frozen = memlane_region::Frozen::copy_of("bits", &[2; 8]).unwrap();
/// frozen.view_slice::<&u8>(0, 1).unwrap();
/// ```
///
/// ```compile_fail,E0277
/// fn read(view: &memlane_region::LiveView) {
///     view.read_as::<bool>(0).unwrap();
/// }
/// ```
///
/// ```compile_fail,E0277
/// fn read(view: &memlane_region::LiveView) {
///     view.read_as::<std::num::NonZeroU64>(0).unwrap();
/// }
/// ```
///
/// nor is padding written where others read it:
///
/// ```compile_fail,E0277
/// use memlane_region::TypedBytes;
/// #[derive(zerocopy::FromBytes, zerocopy::KnownLayout)]
/// #[repr(C)]
/// struct Padded(u8, u32);
/// let mut region = memlane_region::Region::create("padded", 8).unwrap();
/// *region.view_mut::<Padded>(0).unwrap() = Padded(1, 2);
/// ```
///
/// nor is there interior mutability over frozen memory:
///
/// ```compile_fail,E0277
/// use memlane_region::TypedBytes;
/// let frozen = memlane_region::Frozen::copy_of("bits", &[2; 8]).unwrap();
/// frozen.view::<std::sync::atomic::AtomicU64>(0).unwrap();
/// ```
fn not_plain() {}
