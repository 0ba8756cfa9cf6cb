//! Images to import: opened so that no link leads elsewhere, and looked at before any tool may follow what they say.

use std::{fs::File, sync::Arc};

/// An open image. It is read through its descriptor, so that nobody can put another file in its place.
#[derive(Debug, Clone)]
pub struct Image {
    /// The open file.
    pub file: Arc<File>,
    /// Its path, for people.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// "qcow2" or "raw".
    pub format: &'static str,
    /// Size that a guest sees, in bytes.
    pub virtual_size: u64,
}
