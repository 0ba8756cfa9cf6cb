#![allow(clippy::unwrap_used)]
use std::path::PathBuf;

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging/crds")
}

#[test]
fn the_files_in_packaging_are_current() {
    let bless = std::env::var_os("PVELET_BLESS").is_some();
    for (name, text) in files().unwrap() {
        let path = folder().join(&name);
        if bless {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == text, "packaging/crds/{name} is not what the types say: PVELET_BLESS=1 cargo test -p pvelet-controller crd");
    }
    assert_eq!(std::fs::read_dir(folder()).unwrap().count(), files().unwrap().len(), "packaging/crds holds other files");
}
