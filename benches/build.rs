//! Hands the compiler's own version to the header of the report.

use std::env;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc)
        .arg("-V")
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=MEMLANE_RUSTC={}", version.trim());
    let profile = env::var("PROFILE").unwrap_or_else(|_| "unknown".into());
    println!("cargo::rustc-env=MEMLANE_PROFILE={profile}");
}
