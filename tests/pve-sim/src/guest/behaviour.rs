//! What the system inside a guest does, as set from outside while it runs.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::layout::NodeLayout;

/// How the system inside a guest behaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// What it does when asked to shut down.
    pub shutdown: Shutdown,
    /// The guest agent is enabled in the configuration, but does not run.
    pub agent_silent: bool,
}

/// The answer to a request to shut down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shutdown {
    /// Obeyed after so many milliseconds.
    AfterMs(u64),
    /// Ignored, as by a system that hangs or has not booted.
    Ignored,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::AfterMs(20)
    }
}

fn path(layout: &NodeLayout) -> PathBuf {
    layout.root().join("guests.json")
}

fn load_all(layout: &NodeLayout) -> io::Result<BTreeMap<u32, Behaviour>> {
    match fs::read(path(layout)) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

impl Behaviour {
    /// What is set for this VM, or the default.
    pub fn load(layout: &NodeLayout, vmid: u32) -> Self {
        load_all(layout).ok().and_then(|mut all| all.remove(&vmid)).unwrap_or_default()
    }

    /// Sets it, for a running guest too.
    ///
    /// # Errors
    /// When the file cannot be read or replaced.
    pub fn store(&self, layout: &NodeLayout, vmid: u32) -> io::Result<()> {
        let mut all = load_all(layout)?;
        all.insert(vmid, self.clone());
        let path = path(layout);
        let temporary = path.with_extension("json.tmp");
        fs::write(&temporary, serde_json::to_vec_pretty(&all).map_err(io::Error::other)?)?;
        fs::rename(temporary, path)
    }
}
