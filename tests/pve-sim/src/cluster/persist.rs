//! The store on disk, so that a cluster goes on where it ended. Written behind: a kill may lose the last two seconds.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::tree::{Body, Tree};

#[derive(Default, Serialize, Deserialize)]
struct Saved {
    folders: Vec<String>,
    texts: BTreeMap<String, String>,
    /// Files that are no UTF-8, in hexadecimal.
    binaries: BTreeMap<String, String>,
}

pub(super) fn save(tree: &[(String, Option<std::sync::Arc<Vec<u8>>>)], path: &Path) -> io::Result<()> {
    let mut saved = Saved::default();
    for (path, content) in tree {
        match content.as_ref().map(|content| (content, std::str::from_utf8(content))) {
            None => saved.folders.push(path.clone()),
            Some((_, Ok(text))) => drop(saved.texts.insert(path.clone(), text.to_owned())),
            Some((bytes, Err(_))) => drop(saved.binaries.insert(path.clone(), hex::encode(bytes.as_slice()))),
        }
    }
    let temporary = path.with_extension("json.tmp");
    fs::write(&temporary, serde_json::to_vec(&saved).map_err(io::Error::other)?)?;
    fs::rename(temporary, path)
}

/// The saved tree; none if there is none yet.
pub(super) fn load(path: &Path) -> io::Result<Option<Tree>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let saved: Saved = serde_json::from_slice(&text).map_err(io::Error::other)?;
    let mut tree = Tree::new();
    for folder in &saved.folders {
        tree.make_folders(folder);
    }
    let binaries = saved.binaries.into_iter().map(|(path, text)| Ok((path, hex::decode(text).map_err(io::Error::other)?)));
    let texts = saved.texts.into_iter().map(|(path, text)| Ok((path, text.into_bytes())));
    for file in texts.chain(binaries) {
        let (path, content): (String, Vec<u8>) = file.map_err(|error: io::Error| error)?;
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if let Some(parent) = tree.make_folders(folder) {
            tree.insert(parent, name, Body::File(content.into()));
        }
    }
    Ok(Some(tree))
}
