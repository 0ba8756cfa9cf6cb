//! What matters of a configuration of the CRI plugin: as the running daemon tells it, or as it would be after the next start.

use std::collections::BTreeMap;

use serde_json::Value;

/// The runtime that only knows the plugin's own `systemd_cgroup`.
pub(super) const RUNTIME_V1: &str = "io.containerd.runtime.v1.linux";

/// `SystemdCgroup` of a runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Cgroup {
    /// Not set: off.
    #[default]
    Unset,
    /// Set.
    Set(bool),
    /// Set to what is no boolean; the value's type.
    Bad(&'static str),
}

impl Cgroup {
    /// Whether systemd manages cgroups.
    pub(super) fn on(&self) -> bool {
        *self == Self::Set(true)
    }
}

/// A runtime of `containerd.runtimes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Runtime {
    /// `runtime_type`.
    pub(super) kind: String,
    /// `options.SystemdCgroup`.
    pub(super) cgroup: Cgroup,
    /// Whether its options are those of runc and its likes.
    pub(super) runc_options: bool,
    /// A snapshotter of its own; empty: none.
    pub(super) snapshotter: String,
}

impl Runtime {
    /// Whether it hands cgroups to runc or its likes.
    pub(super) fn is_runc(&self) -> bool {
        self.kind.starts_with("io.containerd.runc.") || (self.kind.is_empty() && self.runc_options)
    }
}

/// A configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) default_runtime: String,
    pub(super) runtimes: BTreeMap<String, Runtime>,
    /// `None`: it does not tell (2.x over CRI).
    pub(super) snapshotter: Option<String>,
    /// `None`: it does not tell (2.x over CRI).
    pub(super) sandbox_image: Option<String>,
    /// The plugin's own `systemd_cgroup`.
    pub(super) systemd_cgroup: bool,
    pub(super) cni_conf: String,
    pub(super) cni_bin: Vec<String>,
    /// Whether containerd writes CNI's configuration itself, from a template.
    pub(super) cni_template: bool,
    /// containerd's socket.
    pub(super) endpoint: Option<String>,
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(str::to_owned)
}

/// Names of options that only runc and its likes have.
pub(super) const RUNC_OPTIONS: [&str; 5] = ["SystemdCgroup", "BinaryName", "ShimCgroup", "NoPivotRoot", "CriuPath"];

fn runtime(value: &Value) -> Runtime {
    let options = value.get("options").and_then(Value::as_object);
    let cgroup = match options.and_then(|o| o.get("SystemdCgroup")) {
        None | Some(Value::Null) => Cgroup::Unset,
        Some(Value::Bool(on)) => Cgroup::Set(*on),
        Some(Value::String(_)) => Cgroup::Bad("string"),
        Some(Value::Number(_)) => Cgroup::Bad("number"),
        Some(Value::Array(_)) => Cgroup::Bad("array"),
        Some(Value::Object(_)) => Cgroup::Bad("table"),
    };
    Runtime {
        kind: text(value, "runtimeType").unwrap_or_default(),
        cgroup,
        runc_options: options.is_some_and(|o| RUNC_OPTIONS.iter().any(|k| o.contains_key(*k))),
        snapshotter: text(value, "snapshotter").unwrap_or_default(),
    }
}

impl View {
    /// From what CRI `Status` tells: JSON of the plugin's Go structures. 1.6 and 1.7 tell all of it, 2.x nothing of images. `None`: it is not
    /// that.
    pub(super) fn told(config: &Value) -> Option<Self> {
        let containerd = config.get("containerd").filter(|c| c.is_object())?;
        let runtimes = containerd.get("runtimes").and_then(Value::as_object);
        let cni = config.get("cni").unwrap_or(&Value::Null);
        let dirs = cni.get("binDirs").and_then(Value::as_array);
        let mut bin: Vec<String> = dirs.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if bin.is_empty() {
            bin.extend(text(cni, "binDir").filter(|d| !d.is_empty()));
        }
        Some(Self {
            default_runtime: text(containerd, "defaultRuntimeName").unwrap_or_default(),
            runtimes: runtimes.into_iter().flatten().map(|(name, value)| (name.clone(), runtime(value))).collect(),
            snapshotter: text(containerd, "snapshotter"),
            sandbox_image: text(config, "sandboxImage"),
            systemd_cgroup: config.get("systemdCgroup").and_then(Value::as_bool).unwrap_or_default(),
            cni_conf: text(cni, "confDir").unwrap_or_default(),
            cni_bin: bin,
            cni_template: text(cni, "confTemplate").is_some_and(|t| !t.is_empty()),
            endpoint: text(config, "containerdEndpoint").filter(|e| !e.is_empty()),
        })
    }

    /// The default runtime, where it is declared.
    pub(super) fn default(&self) -> Option<&Runtime> {
        self.runtimes.get(&self.default_runtime)
    }
}
