//! The recordings of real PVE, one JSON object a line.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// One recorded request with its answer, or, without a method, a look at files.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) params: Value,
    pub(crate) status_line: Option<String>,
    pub(crate) body: Option<String>,
    /// What changed meanwhile: new texts, or `<image size=N>`, `<dir>`.
    pub(crate) files: BTreeMap<String, Value>,
    pub(crate) files_removed: Vec<String>,
    pub(crate) client_error: Option<String>,
    pub(crate) request_headers: Vec<String>,
    pub(crate) text: Option<String>,
    /// The task whose worker was killed.
    #[serde(rename = "upid")]
    pub(crate) killed: Option<String>,
    pub(crate) argv: Vec<String>,
    pub(crate) exit_code: Option<i64>,
    pub(crate) stdout: Option<Value>,
    pub(crate) stderr: Option<Value>,
    pub(crate) files_changed: BTreeMap<String, Value>,
}

impl Record {
    /// The recorded body as JSON; a body that is none is a text.
    pub(crate) fn json(&self) -> Value {
        self.body.as_deref().map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text)))
    }

    /// The UPID that the call answered with.
    pub(crate) fn upid(&self) -> Option<String> {
        let data = self.json()["data"].as_str()?.to_owned();
        data.starts_with("UPID:").then_some(data)
    }

    /// The UPID in the request's path, decoded.
    pub(crate) fn upid_in_path(&self) -> Option<String> {
        let path = self.path.as_deref()?.replace("%3A", ":").replace("%40", "@");
        let at = path.find("UPID:")?;
        Some(path[at..].split(['/', '?']).next()?.to_owned())
    }

    /// The numbers of the VMs that the request is about.
    pub(crate) fn vmids(&self) -> Vec<u32> {
        let path = self.path.as_deref().unwrap_or_default();
        let mut ids: Vec<u32> = path.split(['/', '?']).filter_map(|part| part.parse().ok()).collect();
        for key in ["vmid", "newid", "target-vmid"] {
            let value = &self.params[key];
            ids.extend(value.as_u64().map(|n| u32::try_from(n).unwrap_or(0)).or_else(|| value.as_str()?.parse().ok()));
        }
        ids
    }
}

/// The folder of the recordings and of the lists about them.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The records of one file, in the order in which they were made.
pub(crate) fn load(file: &str) -> Vec<Record> {
    let path = folder().join(format!("{file}.jsonl"));
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // The recording machine's qemu-img was started by a script of that name.
    let text = text.replace("qemu-img.real:", "qemu-img:");
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error}: {line:.200}"));
    text.lines().map(parse).collect()
}
