//! The programs as they were before their last change.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use crate::script::folder_of;

/// The folder with the programs of the version before this one; they are built where that was not done yet.
///
/// # Panics
/// When they cannot be built.
pub fn previous() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder_of("tests/versions/build.sh"));
    &FOLDER
}
