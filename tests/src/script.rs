//! What the repository's scripts fetch or build for tests.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A file of this repository.
pub fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The folder that a script prints, with what it fetches or builds, now (seconds to minutes) where that was not done yet.
///
/// # Panics
/// When the script fails; it says why on standard error.
pub fn folder_of(script: &str) -> PathBuf {
    let script = file(script);
    let out = Command::new(&script).stderr(Stdio::inherit()).output().unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    assert!(out.status.success(), "{} ended with {}", script.display(), out.status);
    PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())
}
