//! A library for programs in C (or any language that can call it) that have a loop: connect, ask for the descriptor, wait for
//! it with poll(2) or whatever there is, take messages. `poll.c` uses it.
//!
//! ```text
//! $ cargo build --release --example memlane_c     # target/release/examples/libmemlane_c.so
//! ```

use std::{
    ffi::{CStr, c_char, c_int},
    os::fd::AsRawFd,
};

use memlane::{Subscriber, TryRecvError, Watched};

/// A subscriber. What it is made of is no business of C's.
#[derive(Debug)]
pub struct MemlaneSubscriber(Watched<Subscriber>);

/// There is no message yet: wait for the descriptor.
pub const MEMLANE_EMPTY: isize = -1;
/// The publisher is gone, and everything it had committed has been received.
pub const MEMLANE_GONE: isize = -2;
/// Nothing will come any more; why is said on the standard error.
pub const MEMLANE_FAILED: isize = -3;

/// Subscribes to a service of this user's. NULL if that fails; why is said on the standard error.
///
/// # Safety
/// `service` is a string that ends with a zero.
// Nothing else in a program has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memlane_connect(service: *const c_char) -> *mut MemlaneSubscriber {
    // SAFETY: the caller says that it is a string.
    let service = unsafe { CStr::from_ptr(service) }.to_string_lossy();
    match Subscriber::connect(&service).and_then(Watched::new) {
        Ok(subscriber) => Box::into_raw(Box::new(MemlaneSubscriber(subscriber))),
        Err(error) => {
            eprintln!("memlane: {error}");
            std::ptr::null_mut()
        }
    }
}

/// Readable as long as there may be messages, until `memlane_receive` has answered MEMLANE_EMPTY. Not to be closed.
///
/// # Safety
/// `subscriber` comes from `memlane_connect`, and has not been closed.
// Nothing else in a program has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memlane_fd(subscriber: *const MemlaneSubscriber) -> c_int {
    // SAFETY: the caller says that it is one.
    let MemlaneSubscriber(subscriber) = unsafe { &*subscriber };
    subscriber.as_raw_fd()
}

/// Copies the next message into `buffer`, or as much of it as `size` bytes hold, without waiting. The message's length, or one
/// of MEMLANE_EMPTY, MEMLANE_GONE, MEMLANE_FAILED.
///
/// # Safety
/// `subscriber` is as for `memlane_fd` and used by no other thread meanwhile; `buffer` is not null and has `size` bytes, all of
/// them initialised.
// Nothing else in a program has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memlane_receive(
    subscriber: *mut MemlaneSubscriber,
    buffer: *mut u8,
    size: usize,
) -> isize {
    // SAFETY: the caller says that it is one, that nobody else uses it, and that the buffer is there.
    let (MemlaneSubscriber(subscriber), buffer) = unsafe {
        (
            &mut *subscriber,
            std::slice::from_raw_parts_mut(buffer, size),
        )
    };
    match subscriber.try_recv() {
        Ok(message) => {
            message.copy_to(buffer);
            message.len() as isize
        }
        Err(TryRecvError::Empty) => MEMLANE_EMPTY,
        Err(TryRecvError::Disconnected { .. }) => MEMLANE_GONE,
        Err(error) => {
            eprintln!("memlane: {error}");
            MEMLANE_FAILED
        }
    }
}

/// Hangs up. The descriptor is closed.
///
/// # Safety
/// `subscriber` is as for `memlane_fd`, and not used any more.
// Nothing else in a program has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memlane_close(subscriber: *mut MemlaneSubscriber) {
    // SAFETY: it was made by `Box::into_raw`, and the caller gives it back.
    drop(unsafe { Box::from_raw(subscriber) });
}
