//! States that the recordings take for granted and no earlier record of the same file made: written down in `seeds/<file>.json`, by the record before which
//! they are brought about.

use std::{collections::BTreeMap, fs, path::PathBuf};

use pve_sim::{faults::Faults, guest::Behaviour};
use serde::Deserialize;

/// What is brought about before a record is replayed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Seed {
    /// Texts of files by their path on a real host; null: the file is removed. Images that a VM's configuration names are made with it.
    pub(crate) files: BTreeMap<String, Option<String>>,
    /// VMs that are gone, with their images.
    pub(crate) purge: Vec<u32>,
    /// Values of VMs' configurations; null: the key is not set.
    pub(crate) set: BTreeMap<u32, BTreeMap<String, Option<String>>>,
    /// Calls that were made without being recorded.
    pub(crate) calls: Vec<Call>,
    /// What the systems inside guests do when asked.
    pub(crate) guests: BTreeMap<u32, Behaviour>,
    /// Images, `storage:name`, that are there, with their sizes in bytes.
    pub(crate) images: BTreeMap<String, u64>,
    /// Images that are not.
    pub(crate) no_images: Vec<String>,
    /// VMs that run.
    pub(crate) running: Vec<u32>,
    /// VMs that do not.
    pub(crate) stopped: Vec<u32>,
    /// Locks, by their path on a real host, that somebody else holds for so many seconds of the recording, beginning now.
    pub(crate) held: BTreeMap<String, f64>,
    /// Locks that are held no longer.
    pub(crate) released: Vec<String>,
    /// Requests to the cluster's control socket.
    pub(crate) control: Vec<serde_json::Value>,
    /// What goes wrong from now on.
    pub(crate) faults: Option<Faults>,
    /// The tasks that run are not waited for before this record.
    pub(crate) at_once: bool,
    /// Each task that runs waits for a lock before anything else is brought about, or has done so.
    pub(crate) tasks_wait: bool,
}

/// A call that was made without being recorded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) params: serde_json::Value,
    /// The UPID by which later records name the task that it started, which goes on running.
    pub(crate) upid: Option<String>,
}

/// The seeds of a file of recordings, by record name.
pub(crate) fn load(file: &str) -> BTreeMap<String, Seed> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/seeds").join(format!("{file}.json"));
    match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        Err(_) => BTreeMap::new(),
    }
}
