//! Everything that is made, sealed, sent and opened, under each value of `vm.memfd_noexec`, in pid namespaces of their
//! own, since the setting is one of a namespace's (kernel/pid_sysctl.h).

use std::{
    fs,
    os::fd::{AsFd, AsRawFd},
};

use memlane_region::{Region, Shared};
use rustix::fs::{Mode, SealFlags, fcntl_get_seals};

#[path = "support/alone.rs"]
mod alone;
#[path = "gate.rs"]
mod gate;
#[path = "states.rs"]
mod states;

const SETTING: &str = "/proc/sys/vm/memfd_noexec";

#[test]
fn at_every_setting() {
    for value in ["0", "1", "2"] {
        let set = format!("echo {value} > {SETTING} && exec \"$@\"");
        let namespace = ["--pid", "--fork", "--mount-proc", "sh", "-c"];
        let namespace: Vec<_> = ["unshare"]
            .into_iter()
            .chain(namespace)
            .chain([&*set, "sh"])
            .collect();
        // Whether it can be done at all, apart from what is tested.
        let mut probe = std::process::Command::new(namespace[0]);
        match probe.args(&namespace[1..]).args(["cat", SETTING]).output() {
            Ok(output) if output.status.success() => {
                assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), value);
            }
            other => {
                return eprintln!("skipped: no pid namespace with a setting of its own: {other:?}");
            }
        }
        for tests in ["states::", "gate::", "never_executable"] {
            let output = alone::again(&namespace, &[tests]).output().unwrap();
            let out = String::from_utf8_lossy(&output.stdout);
            let err = String::from_utf8_lossy(&output.stderr);
            let some = !out.contains(" 0 passed");
            assert!(
                output.status.success() && some,
                "memfd_noexec={value}, {tests}\n{out}\n{err}"
            );
        }
    }
}

#[test]
fn never_executable() {
    if !fs::exists(SETTING).unwrap() {
        return eprintln!("skipped: this kernel does not know MFD_NOEXEC_SEAL");
    }
    let script = Region::copy_of("script", b"#!/bin/true\n").unwrap();
    let frozen = script.freeze().unwrap();
    let (_mine, shared) = Shared::create("ring", 1, 4096).unwrap();
    let moved = Region::create("moved", 1).unwrap().into_moved();
    for fd in [frozen.as_fd(), shared.as_fd(), moved.as_fd()] {
        assert!(fcntl_get_seals(fd).unwrap().contains(SealFlags::EXEC));
        let refused = rustix::fs::fchmod(fd, Mode::RWXU).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::PERM);
    }
    let run = |fd: i32| std::process::Command::new(format!("/proc/self/fd/{fd}")).status();
    // Not closed on exec, for the child to find it.
    let inherited = rustix::io::dup(&frozen).unwrap();
    let refused = run(inherited.as_raw_fd()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
}
